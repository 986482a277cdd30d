type Labels = Readonly<Record<string, string>>

/** A metric: its name, its meaning, and its lines in Prometheus' text format. */
interface Metric {
  readonly name: string
  readonly help: string
  readonly type: 'counter' | 'gauge' | 'histogram'
  lines(): string[]
}

class Counter implements Metric {
  readonly type = 'counter'
  readonly #values = new Map<string, number>()

  constructor(
    readonly name: string,
    readonly help: string,
    labelled = false,
  ) {
    if (!labelled) this.#values.set('', 0)
  }

  add(count = 1, labels: Labels = {}): void {
    const key = labelText(labels)
    this.#values.set(key, (this.#values.get(key) ?? 0) + count)
  }

  lines(): string[] {
    return [...this.#values].map(([labels, value]) => `${this.name}${labels} ${value}`)
  }
}

/** A metric that is read when the page is requested. */
class Reading implements Metric {
  constructor(
    readonly name: string,
    readonly help: string,
    private readonly value: () => number,
    readonly type: 'gauge' | 'counter' = 'gauge',
  ) {}

  lines(): string[] {
    return [`${this.name} ${this.value()}`]
  }
}

class Histogram implements Metric {
  readonly type = 'histogram'
  readonly #counts: number[]
  #sum = 0

  constructor(
    readonly name: string,
    readonly help: string,
    private readonly bounds: readonly number[],
  ) {
    this.#counts = Array(bounds.length + 1).fill(0)
  }

  observe(value: number): void {
    const bucket = this.bounds.findIndex((bound) => value <= bound)
    this.#counts[bucket === -1 ? this.bounds.length : bucket]!++
    this.#sum += value
  }

  lines(): string[] {
    let total = 0
    const buckets = [...this.bounds, '+Inf'].map((bound, i) => {
      total += this.#counts[i]!
      return `${this.name}_bucket{le="${bound}"} ${total}`
    })
    return [...buckets, `${this.name}_sum ${this.#sum}`, `${this.name}_count ${total}`]
  }
}

const seconds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]

/** The readings of a server. */
type Readable =
  | 'running'
  | 'waiting'
  | 'requests'
  | 'cachedTokens'
  | 'cachedTokensLimit'
  | 'retained'
  | 'passes'
  | 'passRows'
  | 'drafted'
  | 'accepted'

/** The counters of a server, in Prometheus' text format. */
export class Metrics {
  readonly requests = new Counter('looplm_requests_total', 'Requests by path and status.', true)
  readonly disconnects = new Counter(
    'looplm_disconnects_total',
    'Requests whose client left, or stopped reading, before it had the answer.',
  )
  readonly promptTokens = new Counter('looplm_prompt_tokens_total', 'Tokens of prompts.')
  readonly newTokens = new Counter('looplm_generated_tokens_total', 'Tokens generated.')
  readonly loops: Histogram
  readonly firstToken = new Histogram(
    'looplm_time_to_first_token_seconds',
    'From the end of the request to the first token of a sequence, waiting included.',
    seconds,
  )
  readonly interToken = new Histogram('looplm_inter_token_seconds', 'Between two tokens of a sequence.', seconds)
  readonly duration = new Histogram(
    'looplm_request_seconds',
    'From the first byte of a request to the end of the answer.',
    seconds,
  )
  readonly #readings: Reading[]

  /**
   * @param loops the model's loops, the buckets of the histogram of loops per token
   * @param state functions that are read when the page is requested
   */
  constructor(loops: number, state: Readonly<Record<Readable, () => number>>) {
    const counts = Array.from({ length: loops }, (_, i) => i + 1)
    this.loops = new Histogram('looplm_token_loops', 'Loops after which a token was read.', counts)
    this.#readings = [
      new Reading('looplm_sequences_running', 'Sequences being generated.', state.running),
      new Reading('looplm_sequences_waiting', 'Sequences in the queue.', state.waiting),
      new Reading('looplm_requests_open', 'Requests being answered.', state.requests),
      new Reading('looplm_cached_tokens', 'Tokens of the cache in use: prompts, and room for the answers.', state.cachedTokens),
      new Reading('looplm_cached_tokens_limit', 'Tokens that the cache may hold.', state.cachedTokensLimit),
      new Reading('looplm_retained_tokens', 'Of these, tokens of ended prompts, kept until room is needed.', state.retained),
      new Reading('looplm_passes_total', 'Passes over the weights of the loop.', state.passes, 'counter'),
      new Reading('looplm_pass_rows_total', 'Tokens in all passes.', state.passRows, 'counter'),
      new Reading('looplm_drafted_tokens_total', 'Tokens drafted ahead.', state.drafted, 'counter'),
      new Reading('looplm_accepted_tokens_total', 'Tokens drafted ahead that were kept.', state.accepted, 'counter'),
      new Reading('process_resident_memory_bytes', 'Resident memory of the process.', () => process.memoryUsage.rss()),
    ]
  }

  /** The page that Prometheus reads. */
  text(): string {
    const { requests, disconnects, promptTokens, newTokens, loops, firstToken, interToken, duration } = this
    const all: Metric[] = [
      requests,
      disconnects,
      promptTokens,
      newTokens,
      loops,
      firstToken,
      interToken,
      duration,
      ...this.#readings,
    ]
    return all
      .flatMap(({ name, help, type, lines }, i) => [`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`, ...lines.call(all[i])])
      .join('\n')
      .concat('\n')
  }
}

function labelText(labels: Labels): string {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${value.replaceAll(/[\\"\n]/g, '_')}"`)
  return pairs.length === 0 ? '' : `{${pairs.join(',')}}`
}
