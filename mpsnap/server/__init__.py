"""The control plane: a running cluster that people can see and steer.

    supervisor (`control`) <- link -> control process (`plane`: `hub`, `lines`, `web`) <- sockets -> `client`, browsers

The control process has an interpreter of its own and runs no code of the user's. Whatever becomes of it, the run goes
on.
"""
