"""`make gpu`: on an NVIDIA GPU, the trust tests, seconds and bytes of steps, and what fits in 16 GiB.

    __main__  runs the parts, each row in a process of its own, and writes what they told
      needed  what is missing here; imports nothing but Python's own
      tests   part "tests": the trust tests' variants marked `cuda`, by promise
      rows    parts "steps" and "limits": what a row's process does
        networks  RevNet-104 and the reversible transformer, at any batch and depth
      page    the tables, and docs/gpu.md around them

What was measured is kept in results/gpu.json, so that parts may be run one at a time; the page is made of it.
"""
