// The loggers of examples/ for Weights & Biases and MLflow, against servers that stand in for them.
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { mlflow } from '../examples/mlflow-logger.js'
import { wandb } from '../examples/wandb-logger.js'
import { type Logger, PretrainTrainer } from '../src/index.js'
import { refusal } from './refusal.js'
import { tinyModel, tinyTask } from './tiny.js'

type Answer = { status?: number; body: object }
// biome-ignore lint/suspicious/noExplicitAny: what comes over the wire has no type
type Body = any
const close: (() => void)[] = []
afterEach(() => {
  for (const stop of close.splice(0)) stop()
})

/** A server that answers JSON with JSON. */
async function serve(answer: (path: string, body: Body, request: IncomingMessage) => Answer): Promise<string> {
  const server = createServer(async (request: IncomingMessage, response: ServerResponse) => {
    let text = ''
    for await (const chunk of request) text += chunk
    const { status = 200, body } = answer(request.url!, text === '' ? undefined : JSON.parse(text), request)
    response.writeHead(status, { 'content-type': 'application/json' })
    response.end(JSON.stringify(body))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  close.push(() => server.close().closeAllConnections())
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

async function train(logger: Logger, onWarning: (message: string) => void = () => {}): Promise<void> {
  using model = await tinyModel('cpu')
  const options = { task: tinyTask, batchSize: 4, steps: 2, evalEvery: 2, evalProblems: 4, onWarning, loggers: [logger] }
  using trainer = new PretrainTrainer(model, options)
  for await (const _ of trainer.run());
}

describe('Weights & Biases', () => {
  /** What the server has of a run: its configuration, the lines of its history by their place, and its end. */
  interface Bucket {
    name: string
    config: Record<string, { value: unknown }>
    history: Record<string, number>[]
    end?: { complete: boolean; exitcode: number }
  }

  async function standIn(broken: (call: number) => boolean = () => false) {
    const buckets = new Map<string, Bucket>()
    let calls = 0
    const url = await serve((path, body, request) => {
      if (request.headers.authorization !== `Basic ${Buffer.from('api:secret').toString('base64')}`)
        return { status: 401, body: { error: 'invalid key' } }
      if (path === '/graphql') {
        const { name, config } = body.variables
        const bucket = buckets.get(name) ?? { name, config: JSON.parse(config), history: [] }
        buckets.set(name, bucket)
        return { body: { data: { upsertBucket: { bucket: { name, historyLineCount: bucket.history.length } } } } }
      }
      const [, name] = /^\/files\/team\/looped\/(\w+)\/file_stream$/.exec(path) ?? []
      const bucket = buckets.get(name!)!
      calls++
      if (broken(calls)) return { status: 503, body: { error: 'later' } }
      const { files, ...end } = body
      const { offset, content } = files['wandb-history.jsonl']
      for (const [i, line] of content.entries()) bucket.history[offset + i] = JSON.parse(line)
      if (end.complete) bucket.end = end
      return { body: {} }
    })
    return { buckets, url }
  }
  const options = { project: 'looped', entity: 'team', apiKey: 'secret' }

  it('gets configuration, one line per record and the end; the same id appends', async () => {
    const { buckets, url: baseUrl } = await standIn()
    await train(wandb({ ...options, baseUrl, id: 'first' }))
    const bucket = buckets.get('first')!
    expect(bucket.config).toMatchObject({ trainer: { value: 'pretrain' }, options: { value: { batchSize: 4 } } })
    expect(bucket.history.map((line) => [line._step, Number.isFinite(line.loss), 'eval/loop_3/reward' in line])).toEqual([
      [0, false, true],
      [1, true, false],
      [2, true, false],
      [2, false, true],
    ])
    expect(bucket.end).toEqual({ complete: true, exitcode: 0 })
    await train(wandb({ ...options, baseUrl, id: 'first' }))
    expect(bucket.history.map(({ _step }) => _step)).toEqual([0, 1, 2, 2, 0, 1, 2, 2])
  })

  it('catches up after an outage, without ending the run or losing a line', async () => {
    const { buckets, url: baseUrl } = await standIn((call) => call === 2 || call === 3)
    const onWarning = vi.fn()
    await train(wandb({ ...options, baseUrl, id: 'patchy' }), onWarning)
    expect(buckets.get('patchy')!.history.map(({ _step }) => _step)).toEqual([0, 1, 2, 2])
    expect(onWarning.mock.calls.map(([message]) => message)).toEqual([
      expect.stringMatching(/^Weights & Biases: 503 .*; 1 lines wait for the next call$/),
      expect.stringMatching(/^Weights & Biases: 503 .*; 2 lines wait for the next call$/),
    ])
  })

  it('rejects a wrong or missing API key before training', async () => {
    const { url: baseUrl } = await standIn()
    const error = await refusal(() => train(wandb({ ...options, apiKey: 'wrong', baseUrl })))
    expect(error.message).toMatch(/^logger wandb\.start: 401 .*invalid key/)
    expect(() => wandb({ ...options, apiKey: undefined })).toThrow(/give the API key/)
  })
})

describe('MLflow', () => {
  interface Run {
    info: { run_id: string; experiment_id: string; run_name: string; status?: string }
    params: Record<string, string>
    metrics: { key: string; value: number; step: number }[]
    tags: Record<string, string>
  }

  async function standIn() {
    const runs: Run[] = []
    const experiments = new Map<string, string>()
    const bodies: { params?: unknown[]; metrics?: unknown[] }[] = []
    const missing = { status: 404, body: { error_code: 'RESOURCE_DOES_NOT_EXIST', message: 'none' } }
    const url = await serve((path, body) => {
      const [, name, query] = /^\/api\/2\.0\/mlflow\/([\w/-]+)(?:\?experiment_name=(.*))?$/.exec(path) ?? []
      const run = runs.find(({ info }) => info.run_id === body?.run_id)
      if (name?.startsWith('runs/') && name !== 'runs/create' && run === undefined) return missing
      switch (name) {
        case 'experiments/get-by-name': {
          const experiment_id = experiments.get(decodeURIComponent(query!))
          return experiment_id === undefined ? missing : { body: { experiment: { experiment_id } } }
        }
        case 'experiments/create':
          experiments.set(body.name, '7')
          return { body: { experiment_id: '7' } }
        case 'runs/create':
          runs.push({ info: { ...body, run_id: `run-${runs.length}` }, params: {}, metrics: [], tags: {} })
          return { body: { run: runs.at(-1) } }
        case 'runs/log-batch':
          bodies.push(body)
          for (const { key, value } of body.params ?? []) run!.params[key] = value
          run!.metrics.push(...(body.metrics ?? []))
          return { body: {} }
        case 'runs/set-tag':
          run!.tags[body.key] = body.value
          return { body: {} }
        case 'runs/update':
          run!.info.status = body.status
          return { body: {} }
        default:
          return { status: 404, body: { message: path } }
      }
    })
    return { url, runs, bodies }
  }

  it('gets parameters, metrics with their steps, and the status, in batches of limited size', async () => {
    const { url, runs, bodies } = await standIn()
    await train(mlflow({ url, experiment: 'looped & small' }))
    await train({ ...mlflow({ url, experiment: 'looped & small' }), flush() {} })
    expect(runs.map(({ info }) => [info.experiment_id, info.run_name, info.status])).toEqual([
      ['7', 'pretrain', 'FINISHED'],
      ['7', 'pretrain', 'FINISHED'],
    ])
    const [run] = runs
    expect(run!.params).toMatchObject({ trainer: '"pretrain"', 'options.batchSize': '4', device: '"cpu"' })
    expect(run!.metrics.filter(({ key }) => key === 'loss').map(({ step }) => step)).toEqual([1, 2])
    expect(run!.metrics.filter(({ key }) => key === 'eval/loop_3/reward').map(({ step }) => step)).toEqual([0, 2])
    bodies.length = 0
    const logger = mlflow({ url, experiment: 'looped & small' })
    const many = (count: number) => Object.fromEntries(Array.from({ length: count }, (_, i) => [`n${i}`, i]))
    const facts = { parameters: 1, trained: 1, device: 'cpu', dtype: 'float32', loops: 1, data: 'nothing' }
    await logger.start!({ options: many(250) }, { name: 'large', folder: undefined, step: -1, facts, warn: expect.unreachable })
    await logger.log(1, many(2500), 'step')
    expect(bodies.map(({ params = [], metrics = [] }) => [params.length, metrics.length])).toEqual([
      ...[100, 100, 56].map((count) => [count, 0]), // the last with six facts
      ...[1000, 1000, 500].map((count) => [0, count]),
    ])
    expect(runs[2]!.params).toMatchObject({ 'options.n0': '0', 'options.n249': '249', loops: '1' })
    expect(runs[2]!.metrics.map(({ key, value, step }) => [key, value, step])).toEqual(
      Array.from({ length: 2500 }, (_, i) => [`n${i}`, i, 1]),
    )
  })

  it('marks a failed run as FAILED, and only warns when it cannot record', async () => {
    const { url, runs } = await standIn()
    const logger = mlflow({ url, experiment: 'x' })
    using model = await tinyModel('cpu')
    const callbacks = { onStep: () => Promise.reject(new Error('on purpose')) }
    using failing = new PretrainTrainer(model, { task: tinyTask, batchSize: 4, steps: 2, loggers: [logger], callbacks })
    await refusal(async () => {
      for await (const _ of failing.run());
    })
    expect(runs[0]!.info.status).toBe('FAILED')
    const onWarning = vi.fn()
    await train(mlflow({ url, experiment: 'x', runId: 'gone' }), (message) => onWarning(message))
    expect(onWarning).toHaveBeenCalledWith(expect.stringMatching(/^MLflow: .*runs\/log-batch was not recorded$/))
  })
})
