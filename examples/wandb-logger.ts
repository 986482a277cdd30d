// A logger for Weights & Biases over HTTP, without its SDK: `new RLTTTrainer(model, { task, runDir, loggers: ['jsonl', wandb(…)] })`.
// Calls of the dashboard that fail are warnings: a run does not end because a network is down. What failed is sent with the next call.
import { randomUUID } from 'node:crypto'
import type { Logger } from 'looplm'

export interface WandbOptions {
  project: string
  entity: string
  apiKey: string | undefined
  /** Of the run; the same one again continues it. */
  id?: string
  baseUrl?: string
}

/** What `upsertBucket` answers. */
interface Upserted {
  data: { upsertBucket: { bucket: { historyLineCount: number | null } } }
  errors?: object[]
}

export function wandb({
  project,
  entity,
  apiKey,
  id = randomUUID().slice(0, 8),
  baseUrl = 'https://api.wandb.ai',
}: WandbOptions): Logger {
  if (apiKey === undefined || apiKey === '')
    throw new Error('give the API key of Weights & Biases, for example process.env.WANDB_API_KEY')
  const headers = {
    'content-type': 'application/json',
    authorization: `Basic ${Buffer.from(`api:${apiKey}`).toString('base64')}`,
  }
  const stream = `${baseUrl}/files/${entity}/${project}/${id}/file_stream`
  const begun = Date.now()
  let warn: (message: string) => void = console.warn
  let sent = 0 // lines of the history that the server has
  let waiting: string[] = []

  async function post<Answer>(url: string, body: object): Promise<Answer> {
    const signal = AbortSignal.timeout(10_000)
    const response = await fetch(url, { method: 'POST', headers, body: JSON.stringify(body), signal })
    if (!response.ok) throw new Error(`${response.status} ${await response.text()}`)
    return (await response.json()) as Answer
  }

  async function send(more: object = {}): Promise<void> {
    const content = waiting
    try {
      await post(stream, { files: { 'wandb-history.jsonl': { offset: sent, content } }, ...more })
      sent += content.length
      waiting = waiting.slice(content.length)
    } catch (error) {
      warn(`Weights & Biases: ${(error as Error).message}; ${content.length} lines wait for the next call`)
    }
  }

  return {
    name: 'wandb',
    async start(config, run) {
      warn = run.warn
      const query = `mutation UpsertBucket($name: String, $project: String, $entity: String, $displayName: String, $config: JSONString) {
        upsertBucket(input: {name: $name, modelName: $project, entityName: $entity, displayName: $displayName, config: $config}) {
          bucket { name historyLineCount }
        }
      }`
      const values = Object.fromEntries(Object.entries({ ...config, ...run.facts }).map(([key, value]) => [key, { value }]))
      const variables = { name: id, project, entity, displayName: run.name, config: JSON.stringify(values) }
      const { data, errors } = await post<Upserted>(`${baseUrl}/graphql`, { query, variables }) // a wrong key should end the run at once
      if (errors !== undefined) throw new Error(JSON.stringify(errors))
      sent = data.upsertBucket.bucket.historyLineCount ?? 0
    },
    async log(step, metrics) {
      const now = Date.now()
      waiting.push(JSON.stringify({ _step: step, _timestamp: now / 1000, _runtime: (now - begun) / 1000, ...metrics }))
      await send()
    },
    async finish({ status }) {
      await send({ complete: true, exitcode: status === 'failed' ? 1 : 0 })
    },
  }
}
