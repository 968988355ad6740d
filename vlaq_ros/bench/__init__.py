"""
Measurement of what the package claims: kernels, whole models, memory, switching of precision.

`command` plans and reports, `worker` measures in processes of its own, the other modules are one
subject each. Nothing of the package imports this part.
"""
