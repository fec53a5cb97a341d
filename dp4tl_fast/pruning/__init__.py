"""From a surrogate and a target to a selection (``run``): features in one pass (``surrogate``, ``cache``), what the methods of
``mapping`` look at (``scoring``), and the cut for one target or several (``choose``)."""
