"""Messages that greet, thank, agree or take leave: they ask nothing of the passages."""

from __future__ import annotations

import re

NOTICE = "nothing was asked, so nothing was searched for; the model answers by itself"

_GREETINGS = (
    r"hello|hi|hey|hiya|howdy|greetings|how are you(?: doing)?|how do you do|how is it going|what'?s up"
    r"|nice to meet you"
)
_OTHERS = (
    r"good (?:morning|afternoon|evening|day|night)|bye(?: bye)?|good ?bye|farewell|see you|take care"
    r"|(?:many |much )?thanks|thank you|thx|cheers|much appreciated"
    r"|ok|okay|alright|all right|great|perfect|excellent|awesome|wonderful|cool|got it|i see|understood|sounds good"
)
_MORE = (
    r"(?: (?:there|again|all|everyone|everybody|friend|you|so much|very much|a lot|today|then|now|later|soon|tomorrow"
    r"|for (?:everything|helping|(?:your|the|that|this|all)(?: (?:help|answers?|time|information|explanation))?)))*"
)
_MESSAGE = re.compile(rf"(?:(?:(?:and|oh|so) )?(?:(?:{_GREETINGS}){_MORE}(?: \?)?|(?:{_OTHERS}){_MORE})(?: |$))+")
_NO_WORD = re.compile(r"[^\w\s'?]+")
MOST = 100
"""Characters beyond which a message is never taken for small talk."""


def is_small_talk(message: str) -> bool:
    """Whether an English message is made of nothing but greetings, thanks, assent and farewells ("Hello!", "Great,
    thank you so much."), or holds no word at all. Anything else in it makes it a question."""
    if not message.strip() or len(message) > MOST:
        return False
    words = " ".join(_NO_WORD.sub(" ", message.casefold().replace("\u2019", "'")).replace("?", " ? ").split())
    return not words or _MESSAGE.fullmatch(words) is not None
