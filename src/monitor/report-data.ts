// What a report is made of: written by report.ts, read by the page in the browser.

/** One metric over the run: the steps at which it was written, and its values. */
export interface Curve {
  /** The steps of the points. */
  steps: number[]
  /** The value of each point. */
  values: number[]
  /** The last value, also where the curve of a long run is drawn through averages. */
  last: number
  /** The smallest value of all steps. */
  min: number
  /** The largest value of all steps. */
  max: number
  /** Lower ends of the intervals of the values, where they were measured. */
  low?: number[]
  /** Upper ends of the intervals. */
  high?: number[]
}

/** Something that happened in a run and is no metric. */
export interface ReportNote {
  /** What happened. */
  type: 'resume' | 'warning'
  /** The last step before it. */
  step: number
  /** The note in words. */
  message: string
}

/** Completions of one prompt at one step, with their rewards. */
export interface CompletionGroup {
  /** The text of the prompt. */
  prompt: string
  /** The column `answer`; null: there is none. */
  answer: string | null
  /** What was sampled. */
  completions: {
    /** The text of the completion. */
    text: string
    /** Weighted sum of the rewards; null when all were null. */
    reward: number | null
    /** Scores by reward, before weighting. */
    rewards: Record<string, number>
  }[]
}

/** Everything that a report shows of a run. */
export interface RunData {
  /** The name of the folder. */
  name: string
  /** The trainer as configuration files call it; null: not written yet. */
  trainer: string | null
  /** The last step that was made. */
  step: number
  /** How many steps were planned; null: not written yet. */
  steps: number | null
  /** config.yaml as it stands. */
  config: string
  /** Its fields by name, `options.steps` for example; with all defaults where the run has written run.json. */
  options: Record<string, string>
  /** What run.json says of the model and the data. */
  facts: {
    /** Numbers in the model. */
    parameters: number
    /** Numbers that are trained. */
    trained: number
    /** Where the model lies. */
    device: string
    /** The dtype of its weights. */
    dtype: string
    /** The data in words. */
    data: string
  } | null
  /** Seconds between the first line and the last, pauses before resumes left out; null: lines without a time. */
  seconds: number | null
  /** Warnings and resumes, in order. */
  notes: ReportNote[]
  /** One curve per metric, by name. */
  curves: Record<string, Curve>
  /** Sampled completions, the oldest first. */
  completions: {
    /** The step that sampled them. */
    step: number
    /** The completions by prompt. */
    groups: CompletionGroup[]
  }[]
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
