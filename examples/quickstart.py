"""For application developers: make a context smaller before it goes to any model.

Without the extra `local` or its model, prose is ranked by its words alone; the trace says so.
"""

import kompakt

NOTES = """The treaty was prepared for nine years by three commissions. It was signed in Rome on 25 March 1957 by six
countries. The ceremony took place in a hall on the Capitol. It rained all day. A printer was late, so the delegates
signed a stack of pages that were blank but for the first and the last. Journalists were told much later."""
QUESTION = "Where was the treaty signed, and when?"

small = kompakt.compress(NOTES, query=QUESTION, max_tokens=40)

prompt = f"Answer from the notes.\n\nNotes: {small.text}\n\nQuestion: {QUESTION}"
print(prompt)
print(f"\n{small.outcome.status}: {small.tokens_before} -> {small.tokens_after} tokens")
