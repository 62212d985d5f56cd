"""Reference implementations taken from four Python Enhancement Proposals.

Each function is the pure Python version that its proposal gave to explain a
built-in: PEP 257 (docstring conventions), PEP 279 (enumerate), PEP 616
(methods that remove prefixes and suffixes) and PEP 618 (length-checking in
zip). They are here to be read; the built-ins are faster.
"""

import sys


def trim(docstring):
    """Strip the indentation of a docstring, as PEP 257 describes.

    Docstring processing tools will strip a uniform amount of indentation from
    the second and further lines of the docstring, equal to the minimum
    indentation of all non-blank lines after the first line. Any indentation in
    the first line of the docstring is insignificant and removed. Relative
    indentation of later lines in the docstring is retained. Blank lines should
    be removed from the beginning and end of the docstring.
    """
    if not docstring:
        return ""
    # Convert tabs to spaces (following the normal Python rules)
    # and split into a list of lines:
    lines = docstring.expandtabs().splitlines()
    # Determine minimum indentation (first line doesn't count):
    indent = sys.maxsize
    for line in lines[1:]:
        stripped = line.lstrip()
        if stripped:
            indent = min(indent, len(line) - len(stripped))
    # Remove indentation (first line is special):
    trimmed = [lines[0].strip()]
    if indent < sys.maxsize:
        for line in lines[1:]:
            trimmed.append(line[indent:].rstrip())
    # Strip off trailing and leading blank lines:
    while trimmed and not trimmed[-1]:
        trimmed.pop()
    while trimmed and not trimmed[0]:
        trimmed.pop(0)
    # Return a single string:
    return "\n".join(trimmed)


def enumerate_(collection):
    """Generate an indexed series: (0, coll[0]), (1, coll[1]) ...

    PEP 279 introduced enumerate() to simplify a commonly used looping idiom. It
    provides all iterable collections with the same advantage that iteritems()
    affords to dictionaries: a compact, readable, reliable index notation. The
    function was originally proposed with optional start and stop arguments,
    which were dropped because the call enumerate(seqn, 4, 6) had an alternate,
    plausible interpretation as a slice.
    """
    i = 0
    it = iter(collection)
    while True:
        try:
            yield i, next(it)
        except StopIteration:
            return
        i += 1


def removeprefix(self: str, prefix: str, /) -> str:
    """Return the string without the prefix, if it has it (PEP 616).

    Users of str.lstrip are surprised that its parameter is interpreted as a set
    of characters, not a substring. This repeated issue is evidence that
    removeprefix and removesuffix are useful.
    """
    if self.startswith(prefix):
        return self[len(prefix) :]
    else:
        return self[:]


def removesuffix(self: str, suffix: str, /) -> str:
    """Return the string without the suffix, if it has it (PEP 616)."""
    # suffix='' should not call self[:-0].
    if suffix and self.endswith(suffix):
        return self[: -len(suffix)]
    else:
        return self[:]


def zip_(*iterables, strict=False):
    """Iterate over several iterables together, checking their lengths on request.

    PEP 618 proposed adding an optional strict boolean keyword parameter to the
    built-in zip. When enabled, a ValueError is raised if one of the arguments is
    exhausted before the others. The idea and name for this parameter were
    originally proposed by Ram Rachum.
    """
    if not iterables:
        return
    iterators = tuple(iter(iterable) for iterable in iterables)
    try:
        while True:
            items = []
            for iterator in iterators:
                items.append(next(iterator))
            yield tuple(items)
    except StopIteration:
        if not strict:
            return
    if items:
        i = len(items)
        plural = " " if i == 1 else "s 1-"
        msg = f"zip() argument {i + 1} is shorter than argument{plural}{i}"
        raise ValueError(msg)
    sentinel = object()
    for i, iterator in enumerate(iterators[1:], 1):
        if next(iterator, sentinel) is not sentinel:
            plural = " " if i == 1 else "s 1-"
            msg = f"zip() argument {i + 1} is longer than argument{plural}{i}"
            raise ValueError(msg)


if __name__ == "__main__":
    print(list(enumerate_("abc")))
    print(list(zip_([1, 2, 3], "abc", strict=True)))
    print(removeprefix("test_trim", "test_"), removesuffix("cookiejar.py", ".py"))
