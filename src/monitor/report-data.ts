// What a report is made of: written by report.ts, read by the page in the browser.

/** One metric over the run: the steps at which it was written, and its values. */
export interface Curve {
  steps: number[]
  values: number[]
  /** Over all steps, also where a long run's curve is drawn through averages. */
  last: number
  min: number
  max: number
  /** Ends of the interval of every value, where it was measured. */
  low?: number[]
  high?: number[]
}

/** Something that happened in a run and is no metric. */
export interface ReportNote {
  type: 'resume' | 'warning'
  step: number
  message: string
}

/** Completions of one prompt at one step, with their rewards. */
export interface CompletionGroup {
  prompt: string
  answer: string | null
  completions: { text: string; reward: number | null; rewards: Record<string, number> }[]
}

/** Everything that a report shows of a run. */
export interface RunData {
  name: string
  trainer: string | null
  /** The last step that was made, and how many were planned. */
  step: number
  steps: number | null
  /** config.yaml as it stands. */
  config: string
  /** Its fields by name, `options.steps` for example; with all defaults where the run has written run.json. */
  options: Record<string, string>
  /** What run.json says of the model and the data. */
  facts: { parameters: number; trained: number; device: string; dtype: string; data: string } | null
  /** Seconds between the first line and the last, pauses before resumes left out; null: lines without a time. */
  seconds: number | null
  notes: ReportNote[]
  curves: Record<string, Curve>
  completions: { step: number; groups: CompletionGroup[] }[]
  /** Steps that are averaged into one point of a curve; 1: none are. */
  stepsPerPoint: number
}

/** One chart of a report. */
export interface ReportChart {
  title: string
  unit: string
  lines: { metric: string; label: string; description: string }[]
}

/** What the page is made from. */
export interface ReportData {
  runs: RunData[]
  sections: { title: string; charts: ReportChart[] }[]
  /** Different colours of curves. */
  colours: number
  /** Whether the page asks `looplm watch` for news. */
  live: boolean
}
