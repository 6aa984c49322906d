"""The engine: carries out the schedule of a plan, forward and backward.

In comes a program (how each node is evaluated and undone) and a plan; out come results and, when autograd
asks, saved tensors. Algorithm 1 of the paper (Gomez et al. 2017) is the schedule of two streams with
everything inverted; where its lines are:

    y1 = x1 + F(x2)         forward.py, and one node of it in node_evaluation.py or lean.py
    lines 1 to 3: x from y  replay.py (BackwardPass), which carries out `revgraph.planning.schedule`
    lines 4 to 8: gradients PyTorch's own, on the tensors that a replay captured

Who calls whom, from the top:

    module                  the `nn.Module`; inverse (with inverse_order, log_det): its inputs from its
    outputs forward                 one forward: which path each node takes, what it leaves on the tape lean,
    node_evaluation   a node, with as little bookkeeping as is safe, or with every check tape, replay
    what a forward leaves; a backward pass over it selective_recompute     results that are kept;
    saved_tensors: handles, and what replays capture executable              program and plan in one, with
    functions as Python (inlining, writing) state, sharding         what a replay puts back, and what it
    checks observer                for whoever watches a step: check, track, watch_drift _torch
    what is used of torch that is not public

Values have numbers here, and names only in errors.
"""
