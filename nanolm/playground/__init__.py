"""The playground: a local page on which models write token by token.

page.py      the files of the page
access.py    who may use it
requests.py  what the page asks for, with all checks
session.py   a loaded run: the events of a text, and attention
handler.py   the protocol
server.py    the port, the token, and the end
"""
