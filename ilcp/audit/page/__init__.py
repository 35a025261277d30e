"""The page for those who answer for a pipeline: what was handed over, in words, beside what it was measured to say.

::

    ledger, read only --views--> what a page says --templates--> HTML: no script runs, nothing else is loaded
    request --access--> who asks, and of which runs --a record of the view--> guardian

``ilcp audit serve`` shows it to those whom a file of readers names; ``ilcp audit export --html`` writes it down.
It needs ``ilcp[page]``.
"""
