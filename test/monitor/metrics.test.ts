// What a run writes: every metric is described, and the folder has its report and its events.
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { addition, GRPOTrainer, LoopLM, LoopRPTTrainer, PretrainTrainer, RLTTTrainer } from '../../src/index.js'
import { matchMetric, metricGroups } from '../../src/monitor/metric-catalogue.js'
import { RunReader } from '../../src/monitor/run-reader.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-metrics-'))
  await writeFile(join(root, 'text.txt'), '12+34=046'.repeat(10))
})
afterAll(() => rm(root, { recursive: true }))

const config = {
  vocab_size: 12,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  total_ut_steps: 2,
}
const task = addition({ digits: 1 })
const common = { task, steps: 2, evalEvery: 1, evalProblems: 4, evalSamples: 2 }
const policy = { ...common, promptsPerStep: 2, groupSize: 4, beta: 0.1, logprobCheckEvery: 1, evalTasks: { other: task } }
const text = { steps: 2, evalEvery: 1, batchSize: 2, contextLength: 8, heldOutShare: 0.3, tokenizer: task.tokenizer }
const someNull = (_prompt: string, completion: string) => (completion.startsWith('1') ? null : completion.length % 2)
const documented = metricGroups.flatMap(({ charts }) => charts.flatMap(({ metrics }) => metrics.map(({ name }) => name)))

const trainers = {
  pretrain: (model: LoopLM, runDir: string) => new PretrainTrainer(model, { ...common, batchSize: 4, runDir }),
  stage2: (model: LoopLM, runDir: string) => new PretrainTrainer(model, { ...common, stage: 2, batchSize: 4, runDir }),
  text: (model: LoopLM, runDir: string) => new PretrainTrainer(model, { ...text, corpus: join(root, 'text.txt'), runDir }),
  nulls: (model: LoopLM, runDir: string) => new RLTTTrainer(model, { ...policy, reward: someNull, runDir }),
  rltt: (model: LoopLM, runDir: string) => new RLTTTrainer(model, { ...policy, runDir }),
  grpo: (model: LoopLM, runDir: string) => new GRPOTrainer(model, { ...policy, runDir }),
  looprpt: (model: LoopLM, runDir: string) => new LoopRPTTrainer(model, { ...common, batchSize: 4, rollouts: 2, runDir }),
}

describe('metrics', () => {
  it.each(Object.entries(trainers))('of %s each have exactly one description', async (name, make) => {
    const runDir = join(root, name)
    using model = await LoopLM.create(config, { seed: 0 })
    using trainer = make(model, runDir)
    for await (const _ of trainer.run());
    const { curves, step } = await new RunReader(runDir).read()
    expect(step).toBe(2)
    expect(Object.keys(curves)).toEqual(expect.arrayContaining(['loss', 'grad_norm', 'memory/resident', 'memory/device']))
    expect(curves['memory/device']!.last).toBeGreaterThan(0)
    for (const metric of Object.keys(curves)) {
      expect([metric, documented.filter((one) => matchMetric(one, metric) !== undefined).length]).toEqual([metric, 1])
    }
    const files = await readdir(runDir)
    expect(files).toEqual(expect.arrayContaining(['metrics.jsonl', 'config.yaml', 'report.html']))
    expect(files.filter((file) => file.startsWith('events.out.tfevents.'))).toHaveLength(1)
    if (name === 'text') expect(curves['eval/loop_2/accuracy']).toBeDefined()
    expect(await readFile(join(runDir, 'report.html'), 'utf8')).toMatch(`<title>${name} – looplm</title>`)
  })

  it('are matched by loop and by name', () => {
    expect(matchMetric('loop_<t>/logprob', 'loop_12/logprob')).toEqual({ loop: 12 })
    expect(matchMetric('loop_<t>/logprob', 'loop_0/logprob')).toBeUndefined()
    expect(matchMetric('eval/loop_<t>/reward', 'eval/add/loop_1/reward')).toBeUndefined()
    expect(matchMetric('eval/<name>/loop_<t>/reward', 'eval/add/loop_1/reward')).toEqual({ loop: 1, name: 'add' })
    expect(matchMetric('rewards/<name>/mean', 'rewards/a/b/mean')).toEqual({ name: 'a/b' })
    expect(matchMetric('kl', 'kl2')).toBeUndefined()
  })
})
