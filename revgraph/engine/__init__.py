"""The engine: carries out the schedule of a plan, forward and backward.

In comes a program (how each node is evaluated and undone) and a plan; out come results and, when autograd
asks, saved tensors. Algorithm 1 of the paper (Gomez et al. 2017) is the schedule of two streams with
everything inverted; where its lines are:

    y1 = x1 + F(x2)         forward.py, and one node of it in node_evaluation.py or lean.py
    lines 1 to 3: x from y  replay.py (BackwardPass), which carries out `revgraph.planning.schedule`
    lines 4 to 8: gradients PyTorch's own, on the tensors that a replay captured

Who calls whom, from the top:

    module                the `nn.Module`: what a user calls, and the results
      forms_of_call       which program a call takes, traced when it first comes, and its plan
        traced_form       one such program, and for which inputs it is known to be right
      facade              the model's own attributes and signature on it
      forward             one forward: which path each node takes, and what it leaves on the tape
        lean              a node with as little bookkeeping as is safe
        node_evaluation   a node with every check
      tape, replay        what a forward leaves; a backward pass over it
      inverse             inputs from outputs (inverse_order: which nodes, in what order; log_det)
    executable            program and plan in one, with numbers for names
    inlining, writing     functions of nodes as Python source
    selective_recompute   results that are kept for replays
    saved_tensors         handles in the place of saved tensors, and what replays capture
    state, contexts, random_state, sharding
                          what a replay puts back, and what it checks
    observer              for whoever watches a step: check, track, watch_drift
    _torch                what is used of torch that is not public

Values have numbers here, and names only in errors.
"""
