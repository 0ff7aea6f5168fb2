"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Wrong input or an outside obstacle, told in one sentence: the flag, its value, the remedy.

    `common.cli.command` prints the sentence and ends the process with exit status 2; code that
    calls `train(Config(...))` from Python sees an ordinary exception.
    """
