// A logger for MLflow over its REST interface: `new RLTTTrainer(model, { task, runDir, loggers: ['jsonl', mlflow(…)] })`.
// Calls that fail after the start are warnings: a run does not end because a tracking server is down.
import type { Logger } from 'looplm'

export interface MLflowOptions {
  /** Of the tracking server, for example http://localhost:5000. */
  url: string
  experiment: string
  /** Of a run that goes on. */
  runId?: string
  headers?: Record<string, string>
}

const mostParams = 100 // of a call, as the server says
const mostMetrics = 1000

export function mlflow({ url, experiment, runId, headers = {} }: MLflowOptions): Logger {
  let id = runId
  let warn: (message: string) => void = console.warn

  async function call<Answer>(method: string, path: string, body?: object): Promise<Answer> {
    const response = await fetch(`${url}/api/2.0/mlflow/${path}`, {
      method,
      headers: { 'content-type': 'application/json', ...headers },
      ...(body !== undefined && { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(10_000),
    })
    const answer = (await response.json()) as Answer & { message?: string; error_code?: string }
    if (!response.ok) throw Object.assign(new Error(`${response.status} ${answer.message ?? ''}`), { code: answer.error_code })
    return answer
  }

  async function experimentId(): Promise<string> {
    const query = `experiments/get-by-name?experiment_name=${encodeURIComponent(experiment)}`
    const found = await call<{ experiment: { experiment_id: string } }>('GET', query).catch((error: { code?: string }) => {
      if (error.code !== 'RESOURCE_DOES_NOT_EXIST') throw error
      return undefined
    })
    if (found !== undefined) return found.experiment.experiment_id
    return (await call<{ experiment_id: string }>('POST', 'experiments/create', { name: experiment })).experiment_id
  }

  /** `{ options: { steps: 100 } }` as `options.steps`: MLflow's parameters are strings. */
  function flat(value: unknown, path = ''): { key: string; value: string }[] {
    if (typeof value !== 'object' || value === null || Array.isArray(value))
      return [{ key: path, value: String(JSON.stringify(value)) }]
    return Object.entries(value).flatMap(([name, inner]) => flat(inner, path === '' ? name : `${path}.${name}`))
  }

  const tell = (path: string, body: object) =>
    call('POST', path, body).catch((error) => warn(`MLflow: ${error.message}; ${path} was not recorded`))

  return {
    name: 'mlflow',
    async start(config, run) {
      warn = run.warn
      if (id !== undefined) return // parameters of a run are written once
      const about = { experiment_id: await experimentId(), run_name: run.name, start_time: Date.now() }
      id = (await call<{ run: { info: { run_id: string } } }>('POST', 'runs/create', about)).run.info.run_id
      const params = flat({ ...config, ...run.facts })
      for (let from = 0; from < params.length; from += mostParams)
        await call('POST', 'runs/log-batch', { run_id: id, params: params.slice(from, from + mostParams) })
    },
    async log(step, metrics) {
      const timestamp = Date.now()
      const all = Object.entries(metrics).map(([key, value]) => ({ key, value, timestamp, step }))
      for (let from = 0; from < all.length; from += mostMetrics)
        await tell('runs/log-batch', { run_id: id, metrics: all.slice(from, from + mostMetrics) })
    },
    async note(step, { message }) {
      const tag = { run_id: id, key: `warning.${step}`, value: message.slice(0, 5000) }
      await call('POST', 'runs/set-tag', tag).catch(() => {}) // a warning about a warning would have no end
    },
    async finish({ status }) {
      const states = { finished: 'FINISHED', aborted: 'KILLED', failed: 'FAILED' }
      await tell('runs/update', { run_id: id, status: states[status], end_time: Date.now() })
    },
  }
}
