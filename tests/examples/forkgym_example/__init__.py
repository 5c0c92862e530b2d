"""An example of a package with a tool and an environment of its own."""
