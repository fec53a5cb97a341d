"""One pretraining run: its settings (``config``), what is trained (``learner``) on what (``batches``), from start to end (``run``),
and the folder it leaves (``folder``)."""
