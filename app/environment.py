"""Values of environment variables as Compose, Helm and env files pass them. Imports nothing, for the health check."""


def cleaned(text: str) -> str:
    """A value without white space at its ends, such as a carriage return, and without quotes around it.

    Docker and systemd pass the quotes of an env file on. Quotes within the value are kept, and so are those around it
    then. An empty result means that the variable is not set.
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text
