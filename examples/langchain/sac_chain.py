"""The shortest way. python sac_chain.py my.lib "How long is the Erie Canal?" """

import sys

from langchain_sac import create_sac_chain

library, question = sys.argv[1:]

result = create_sac_chain(library).invoke(question)
print(result["answer"])
for document in result["context"]:
    print(document.metadata["document"], document.metadata["start"], document.metadata["end"])
