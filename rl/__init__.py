"""The algorithm in plain torch: no Ray, no HTTP, no vLLM.

A training job passes through the modules in this order:

    trajectories, tokens/    wire types of trajectory groups; messages and choices to exact token sequences
    config, settings         options of a job; LoRA and optimizer settings
    advantages, batch        rewards to advantages; trajectory groups to the packed sequences of a job
    packing, attention       many sequences in one row, with shared prefixes computed once, and the masks for it
    steps, learning_rate     the loop over gradient steps, and the rate of each
    learner                  gradients and the optimizer step, on one learner or several
    policy, lora, logprobs   the frozen base model with its adapter, and logprobs from it
    losses/                  the policy losses, pure functions
    checkpoints              a policy version on disk, complete and verified

Besides, environments/ has tasks, rollouts and rewards, tiny/ the built-in model and its recipe, policy_lag and
policy_versions record which version sampled a trajectory, and durability writes files that survive a crash.
Nothing is imported here, so that `tandem.rl.trajectories` or `tandem.rl.environments` load without torch.
"""
