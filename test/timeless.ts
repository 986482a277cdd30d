// What differs between two runs that are otherwise equal: when they ran, how fast, and what memory the process had.

const timed = new Set([
  'time',
  'step_time',
  'sampling_time',
  'tokens_per_second',
  'memory/resident',
  'memory/device',
  'parallel/step_time_max',
  'parallel/bytes',
  'parallel/wait_share',
])

/** A line of metrics.jsonl, or the metrics of a step, without these. */
export function timeless<Value>(record: Readonly<Record<string, Value>>): Record<string, Value> {
  return Object.fromEntries(Object.entries(record).filter(([name]) => !timed.has(name)))
}
