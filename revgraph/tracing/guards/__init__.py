"""Guards: what a program takes for granted of its model and surroundings, and whether that still holds.

In: the reads that opened code made while it was traced. Out: `Guards`, part of the program, which the engine
asks at each call (`Guards.hold`); where one does not hold the model is traced anew. The tracer drives all of
this and rolls it back together with the graph (`mark` and `forget`).

    attribute_reads   sees attributes of modules, and of the objects that they hold, while code reads them
    calls             sees the functions that run: globals, free variables, defaults, class attributes, clocks
    stand_ins         `type`, `id`, `callable` and `globals` as opened code has them
    namespaces        sees names of other modules of user code that are read: local imports, aliases
    fixed_values      one thing read, what it was, and how the two are compared, copied and pickled
    guards            all of these as one generated function; forms of tensors; modules and hooks
    settings          attributes that are None until the first forward settles them
    random_sources    generators of random numbers and clocks, which a graph must not turn into constants
    torch_state       torch's global state, which code asks for by functions
    substitutions     modules called while they hold other tensors than their own

Why so much is watched. Tracing runs Python code once. Whatever this code took from elsewhere than its traced
arguments is a constant of the graph from then on, and a later call with another value would silently compute
what the model would not. TorchDynamo has the same problem and guards what its bytecode interpreter loads;
here the code runs as usual, so the loads are seen from outside: attributes by a patched `__getattribute__`,
which a call to the interpreter's profiling hook complements for what no attribute access shows. What is seen
is never judged to be harmless: it is compared by value, compared by identity, or refused (`Untraceable`).
"""
