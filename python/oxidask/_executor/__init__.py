"""What runs in the processes that carry out tasks.

A worker starts one fork server; that starts one child per slot. Nothing here needs the compiled part of
the package.
"""
