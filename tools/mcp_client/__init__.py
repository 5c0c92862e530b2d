"""Connections to servers of the Model Context Protocol, and the sessions of their tools."""
