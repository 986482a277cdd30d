// npm run demo: a looped model learns to add five-digit numbers, first from examples, then from reward alone.
import { mkdir, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { parseArgs } from 'node:util'
import { addition, type Evaluation, evaluate, LoopLM, PretrainTrainer, RLTTTrainer } from 'looplm'
import { lineChart } from '../src/monitor/chart.js'

const settings = {
  model: {
    vocab_size: 12,
    hidden_size: 96,
    intermediate_size: 256,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    total_ut_steps: 4,
    max_position_embeddings: 64,
    initializer_range: 0.1, // 1 / sqrt(hidden_size); the default suits larger models
  },
  pretrain: { batchSize: 192, learningRate: 2e-3, entropyCoefficient: 0.2, weightDecay: 0, steps: 600 },
  /** Stage I ends when greedy accuracy at full depth on `problems` held-out five-digit problems reaches `accuracy`. */
  base: { accuracy: 0.25, checkEvery: 10, firstCheck: 100, problems: 512 },
  rl: {
    weights: 'exit-pdf',
    promptsPerStep: 32,
    groupSize: 8,
    temperature: 1,
    learningRate: 4e-4,
    schedule: 'linear',
    warmupSteps: 20, // without it AdamW's first steps can undo Stage I
    maxGradNorm: 1,
    steps: 400,
  },
  finalProblems: 3000,
  /** Accuracy is measured every `every` steps; the reward is drawn as means over `mean` steps. */
  curve: { every: 40, problems: 512, mean: 10 },
} as const

const { values: flags } = parseArgs({
  options: { out: { type: 'string', default: 'demo.svg' }, seed: { type: 'string', default: '0' }, threads: { type: 'string' } },
})
const seed = Number(flags.seed)
const start = performance.now()
const elapsed = () => `${((performance.now() - start) / 1000).toFixed(0).padStart(4)} s`
const say = (text: string) => console.log(`${elapsed()}  ${text}`)
const percent = (value: number) => `${(100 * value).toFixed(1)} %`

const task = addition({ digits: 5 })
const mixed = addition({ digits: 5, minDigits: 1 })
using model = await LoopLM.create(settings.model, {
  seed,
  ...(flags.threads === undefined ? {} : { threads: Number(flags.threads) }),
})
const loops = model.config.total_ut_steps

say(
  `A looped model with ${model.parameterCount.toLocaleString('en-US')} parameters: 2 layers that run ${loops} times. Task: ${task.sample('test', 0).prompt}`,
)
say(
  `Stage I: learns from written-out sums of 1 to 5 digits until it solves ${percent(settings.base.accuracy)} of unseen 5-digit ones.`,
)
const baseSteps = await pretrain()
const before = await evaluate(model, { task, problems: settings.finalProblems })
report(`after Stage I (${baseSteps} steps)`, before)

say(
  `RLTT: ${settings.rl.steps} steps on 5-digit sums; ${settings.rl.groupSize} samples per problem, reward 1 for a right answer, else 0.`,
)
const history = await reinforce()
const after = await evaluate(model, { task, problems: settings.finalProblems })
report('after RLTT', after)
const gain = after.at(-1)!.reward - before.at(-1)!.reward
say(`Reward alone raised accuracy at full depth by ${(100 * gain).toFixed(1)} points.`)
await draw()

/** Stage I; returns how many steps it took. */
async function pretrain(): Promise<number> {
  const { accuracy, checkEvery, firstCheck, problems } = settings.base
  using trainer = new PretrainTrainer(model, { task: mixed, seed, ...settings.pretrain })
  for await (const { type, step, metrics } of trainer.run()) {
    if (type !== 'step' || step < firstCheck || step % checkEvery !== 0) continue
    const [full] = await evaluate(model, { task, problems, loops: [loops] })
    if (step % 50 === 0) say(`  step ${step}: loss ${metrics.loss!.toFixed(3)}, 5-digit accuracy ${percent(full!.reward)}`)
    if (full!.reward >= accuracy) return step
  }
  throw new Error(`Stage I did not reach ${accuracy} in ${settings.pretrain.steps} steps; try another --seed`)
}

/** Reinforcement; returns the rewards and, every few steps, the accuracy by loop count. */
async function reinforce() {
  const { every, problems, mean } = settings.curve
  const rewards: [number, number][] = []
  let recent = 0
  const evaluations: { step: number; results: Evaluation[] }[] = [{ step: 0, results: await evaluate(model, { task, problems }) }]
  using trainer = new RLTTTrainer(model, { task, seed, ...settings.rl })
  for await (const { type, step, metrics } of trainer.run()) {
    if (type !== 'step') continue
    recent += metrics.reward! / mean
    if (step % mean === 0) {
      rewards.push([step, recent])
      recent = 0
    }
    if (step % every !== 0) continue
    const results = await evaluate(model, { task, problems })
    evaluations.push({ step, results })
    say(
      `  step ${step}: reward ${metrics.reward!.toFixed(3)}, mean exit loop ${metrics['exit_loop/mean']!.toFixed(2)}, ${byLoop(results)}`,
    )
  }
  return { rewards, evaluations }
}

function report(when: string, results: readonly Evaluation[]): void {
  say(`Accuracy ${when}, ${settings.finalProblems} unseen problems: ${byLoop(results)}`)
}

function byLoop(results: readonly Evaluation[]): string {
  return results.map(({ loops, reward }) => `${loops} loop${loops > 1 ? 's' : ''} ${percent(reward)}`).join(', ')
}

/** Draws reward and accuracy over the steps of RLTT. */
async function draw(): Promise<void> {
  const accuracy = before.map(({ loops }, i) => ({
    name: `${loops} loop${loops > 1 ? 's' : ''}`,
    points: history.evaluations.map(({ step, results }): [number, number] => [step, results[i]!.reward]),
  }))
  const chart = lineChart({
    title: 'RLTT on five-digit addition',
    description: `Mean reward of the samples and greedy accuracy on unseen problems by loop count, over ${settings.rl.steps} steps. At full depth accuracy goes from ${percent(before.at(-1)!.reward)} to ${percent(after.at(-1)!.reward)}.`,
    panels: [
      {
        title: 'Training reward',
        xLabel: 'step',
        yLabel: 'mean reward',
        yRange: [0, 1],
        series: [{ name: `samples at temperature 1, means of ${settings.curve.mean} steps`, points: history.rewards }],
      },
      { title: 'Held-out accuracy, greedy', xLabel: 'step', yLabel: 'accuracy', yRange: [0, 1], series: accuracy },
    ],
  })
  await mkdir(dirname(flags.out), { recursive: true })
  await writeFile(flags.out, chart)
  say(`Figure: ${flags.out}`)
}
