"""A task on text: the language of each word of mixed sentences.

Knows the grammars of the synthetic speakers and BERT encoders; not speech.
"""
