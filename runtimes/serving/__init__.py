"""Many requests on one engine: continuous batching over the rows of one session.

with Batcher(engine, rows=8) as batcher:
    answer = batcher.submit(token_ids, max_new_tokens=64)
    for piece in answer.text_pieces(): ...
"""

from l4export.runtimes.serving.answer import Answer, Chosen
from l4export.runtimes.serving.batcher import Batcher, Closed, Overloaded
from l4export.runtimes.serving.metrics import Histogram, Metrics

__all__ = ["Answer", "Batcher", "Chosen", "Closed", "Histogram", "Metrics", "Overloaded"]
