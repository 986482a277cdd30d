/*
 * The definition of every metric. The report's charts and docs/metrics.md are generated from this list, and a test compares it
 * with what the trainers write. `<t>` is a loop, counted from 1, `<name>` a reward or a task, and `<k>` a number of samples.
 */

/** One metric, or one per loop or reward. */
export interface MetricDoc {
  name: string
  /** Empty if the metric has no unit. */
  unit: string
  description: string
}

/** Metrics that belong together. */
export interface MetricGroup {
  title: string
  charts: readonly { title: string; metrics: readonly MetricDoc[] }[]
}

const metric = (name: string, unit: string, description: string): MetricDoc => ({ name, unit, description })

/** All metrics of metrics.jsonl, in the order of the report. */
export const metricGroups: readonly MetricGroup[] = [
  {
    title: 'Reward',
    charts: [
      {
        title: 'Reward',
        metrics: [
          metric('reward', '', 'Mean reward of the completions of the step; with LoopRPT, the mean reward of an exit.'),
          metric('reward_std', '', 'Standard deviation of the rewards within a group, averaged over the groups.'),
        ],
      },
      {
        title: 'Accuracy by loops',
        metrics: [
          metric(
            'eval/loop_<t>/reward',
            '',
            'Mean reward of the answers to the held-out problems when every token runs t loops: the accuracy, when rewards are 0 and 1.',
          ),
          metric('eval/<name>/loop_<t>/reward', '', 'The same for one of `evalTasks`.'),
        ],
      },
      {
        title: 'Interval of the accuracy by loops',
        metrics: [
          metric(
            'eval/loop_<t>/reward_low',
            '',
            "Lower end of the 95 % interval of the mean reward: Wilson's interval for single answers that earn 0 or 1, else a bootstrap over the problems.",
          ),
          metric('eval/loop_<t>/reward_high', '', 'Upper end of that interval.'),
          metric('eval/<name>/loop_<t>/reward_low', '', 'The same for one of `evalTasks`.'),
          metric('eval/<name>/loop_<t>/reward_high', '', 'The same for one of `evalTasks`.'),
        ],
      },
      {
        title: 'Right in several samples, by loops',
        metrics: [
          metric(
            'eval/loop_<t>/pass_at_<k>',
            'share',
            'With `evalSamples`: unbiased pass@k, the probability that at least one of k answers is right. Needs rewards of 0 and 1.',
          ),
          metric('eval/<name>/loop_<t>/pass_at_<k>', 'share', 'The same for one of `evalTasks`.'),
        ],
      },
      {
        title: 'Held-out text by loops',
        metrics: [
          metric(
            'eval/loop_<t>/accuracy',
            'share',
            'Share of the tokens of held-out text, or of held-out answers, that loop t ranks first.',
          ),
        ],
      },
      {
        title: 'Interval of held-out text by loops',
        metrics: [
          metric(
            'eval/loop_<t>/accuracy_low',
            'share',
            'Lower end of the 95 % interval of the accuracy, by a bootstrap over the sequences.',
          ),
          metric('eval/loop_<t>/accuracy_high', 'share', 'Upper end of that interval.'),
        ],
      },
      {
        title: 'Loss of held-out text by loops',
        metrics: [metric('eval/loop_<t>/loss', 'nats', 'Mean negative log-probability of these tokens after loop t.')],
      },
      {
        title: 'Reward by function',
        metrics: [
          metric('rewards/<name>/mean', '', 'Mean score of one reward function, before its weight.'),
          metric('rewards/<name>/std', '', 'Standard deviation of its scores (unbiased).'),
        ],
      },
      {
        title: 'Groups without a signal',
        metrics: [
          metric(
            'frac_reward_zero_std',
            'share',
            'Share of the groups whose completions all earned the same reward; they have no gradient.',
          ),
          metric('frac_reward_null', 'share', 'Share of the completions without a reward, because every function returned null.'),
        ],
      },
    ],
  },
  {
    title: 'Completions',
    charts: [
      {
        title: 'Completion length',
        metrics: [
          metric('completions/mean_length', 'tokens', 'Mean tokens per completion, the end token included.'),
          metric('completions/min_length', 'tokens', 'Shortest completion.'),
          metric('completions/max_length', 'tokens', 'Longest completion.'),
        ],
      },
      {
        title: 'Completions cut off',
        metrics: [
          metric(
            'completions/clipped_ratio',
            'share',
            'Share of the completions that ended at `maxNewTokens` or, for episodes, at `maxEpisodeTokens` or `maxTurns`.',
          ),
        ],
      },
      {
        title: 'Answers cut off',
        metrics: [
          metric(
            'eval/loop_<t>/clipped_ratio',
            'share',
            'Share of the answers with t loops that ended at `maxNewTokens` or, for episodes, at `maxEpisodeTokens` or `maxTurns`.',
          ),
          metric('eval/<name>/loop_<t>/clipped_ratio', 'share', 'The same for one of `evalTasks`.'),
        ],
      },
      {
        title: 'Length of answers',
        metrics: [
          metric('eval/loop_<t>/mean_length', 'tokens', 'Mean tokens per answer with t loops.'),
          metric('eval/<name>/loop_<t>/mean_length', 'tokens', 'The same for one of `evalTasks`.'),
        ],
      },
    ],
  },
  {
    title: 'Episodes',
    charts: [
      {
        title: 'Turns',
        metrics: [
          metric('episodes/turns', '', 'Mean turns of the model in an episode.'),
          metric('turns/gain', '', 'Mean gain of a turn in the belief in the gold answer (`advantage.gain`).'),
        ],
      },
      {
        title: 'Tools',
        metrics: [
          metric('tools/call_frequency', '', 'Mean calls of tools in an episode.'),
          metric('tools/failure_frequency', 'share', 'Share of these calls that were answered with an error message.'),
        ],
      },
      {
        title: 'Cache between turns',
        metrics: [
          metric('sampling/prefilled_tokens', 'tokens', 'Prompts and replies that ran in this step, each token once.'),
          metric(
            'sampling/reused_tokens',
            'tokens',
            'Tokens of earlier turns and of other prompts whose keys and values the cache had.',
          ),
          metric(
            'sampling/evicted_sequences',
            '',
            'Sequences that were dropped from the cache between two turns because memory was short, and computed again.',
          ),
        ],
      },
    ],
  },
  {
    title: 'Policy',
    charts: [
      {
        title: 'Entropy',
        metrics: [
          metric('entropy', 'nats', 'Entropy of the next-token distribution at the last loop, mean over the response tokens.'),
        ],
      },
      {
        title: 'KL divergence',
        metrics: [
          metric(
            'kl',
            'nats',
            'The k3 estimate of the KL divergence to the frozen starting model (`beta` > 0), or with LoopRPT to the teacher.',
          ),
        ],
      },
      {
        title: 'Loss',
        metrics: [
          metric(
            'loss',
            '',
            'The loss whose gradient was followed. In a policy gradient it stays near 0 and says little: follow the reward.',
          ),
          metric('policy_loss', '', 'The part of the loss that is the policy gradient.'),
          metric('representation_loss', '', 'LoopRPT: the part that is the cross-entropy of the loops.'),
        ],
      },
      {
        title: 'Gradient norm',
        metrics: [metric('grad_norm', '', 'Global norm of the gradient before clipping.')],
      },
      {
        title: 'Ratio to the sampling policy',
        metrics: [
          metric('ratio/mean', '', '`ppo`, `cispo`: mean ratio of the probabilities under the policy and the one that sampled.'),
        ],
      },
      {
        title: 'Clipped ratios',
        metrics: [
          metric('clip_ratio/low_mean', 'share', 'Share of the tokens whose ratio was clipped from below.'),
          metric('clip_ratio/high_mean', 'share', 'Share of the tokens whose ratio was clipped from above.'),
          metric('clip_ratio/region_mean', 'share', 'Both together.'),
        ],
      },
      {
        title: 'Sampling against training',
        metrics: [
          metric(
            'sampling/logprob_difference/mean',
            'nats',
            'Mean absolute difference of the log-probabilities of sampling and of training, every `logprobCheckEvery` steps.',
          ),
          metric('sampling/logprob_difference/max', 'nats', 'The largest such difference.'),
        ],
      },
      {
        title: 'Dynamic sampling',
        metrics: [
          metric('sampling/rounds', '', '`filter.resample`: rounds of prompts that the step sampled.'),
          metric(
            'sampling/frac_discarded',
            'share',
            '`filter.resample`: share of the sampled completions that are not trained on. Rewards and lengths are those of the others, `num_tokens` and `sampling_time` of all.',
          ),
        ],
      },
      {
        title: 'Learning rate',
        metrics: [metric('learning_rate', '', 'Learning rate of the step.')],
      },
    ],
  },
  {
    title: 'Loops',
    charts: [
      {
        title: 'Log-probability by loop',
        metrics: [
          metric('loop_<t>/logprob', 'nats', 'Mean log-probability of the trained tokens when they are read from loop t.'),
        ],
      },
      {
        title: 'Weight by loop',
        metrics: [metric('loop_<t>/weight', 'share', 'Mean weight of the log-probability of loop t in the loss.')],
      },
      {
        title: 'Exit distribution',
        metrics: [metric('loop_<t>/exit_prob', 'share', 'Mean probability of an exit after loop t.')],
      },
      {
        title: 'Mean exit loop',
        metrics: [
          metric('exit_loop/mean', 'loops', 'Expected loop at which a token exits.'),
          metric('sampled_exit_loop/mean', 'loops', 'LoopRPT: mean of the exits that were drawn.'),
          metric(
            'reference_loop/mean',
            'loops',
            "LoopRPT: mean reference loop, where the teacher's cumulative exit probability reaches `tau`.",
          ),
        ],
      },
      {
        title: 'Entropy of the exits',
        metrics: [metric('exit_entropy', 'nats', 'Mean entropy of the exit distribution.')],
      },
      {
        title: 'Hard tokens',
        metrics: [metric('hard_tokens', 'tokens', 'LoopRPT: predictions that counted in the step.')],
      },
    ],
  },
  {
    title: 'Speed and memory',
    charts: [
      {
        title: 'Throughput',
        metrics: [metric('tokens_per_second', 'tokens/s', 'Tokens sampled or read per second of the step, prompts included.')],
      },
      {
        title: 'Time',
        metrics: [
          metric('step_time', 's', 'Seconds of the step.'),
          metric('sampling_time', 's', 'Seconds of the step that went into sampling.'),
          metric('parallel/step_time_max', 's', 'Seconds of the slowest of several processes.'),
        ],
      },
      {
        title: 'Processes',
        metrics: [
          metric(
            'parallel/wait_share',
            'share',
            'Mean share of the step that a process waited for the others or for gradients. The exchange of parameters is not counted.',
          ),
          metric('parallel/imbalance', '', 'Tokens that the busiest process trained, over the mean of all: 1 is balanced.'),
        ],
      },
      {
        title: 'Traffic',
        metrics: [metric('parallel/bytes', 'bytes', 'Mean bytes that a process sent to others in the step.')],
      },
      {
        title: 'Memory',
        metrics: [
          metric('memory/resident', 'MiB', 'Resident memory of the process after the step; with several processes, the largest.'),
          metric(
            'memory/device',
            'MiB',
            'Memory that tensors, models and optimizers hold on their devices; with several processes, the largest.',
          ),
        ],
      },
      {
        title: 'Tokens so far',
        metrics: [metric('num_tokens', 'tokens', 'Tokens since the beginning of the run.')],
      },
      {
        title: 'Steps without an update',
        metrics: [
          metric(
            'skipped_updates',
            'steps',
            'Updates since the beginning of the run that were skipped because no group had a gradient.',
          ),
        ],
      },
    ],
  },
]

/** The values of `<t>` and `<name>` if a metric's name matches a documented one. undefined if it is another metric. */
export function matchMetric(documented: string, name: string): { loop?: number; name?: string } | undefined {
  const literal = documented.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&')
  const pattern = literal.replace('<t>', '(?<loop>[1-9]\\d*)').replace('<name>', '(?<name>.+)').replace('<k>', '(?:[1-9]\\d*)')
  const match = new RegExp(`^${pattern}$`).exec(name)
  if (match === null) return undefined
  const { loop, name: found } = match.groups ?? {}
  return { ...(loop !== undefined && { loop: Number(loop) }), ...(found !== undefined && { name: found }) }
}
