// The data of a report, written by report.ts and read by the page in the browser.

/** One metric over the run: the steps at which it was logged, and its values. */
export interface Curve {
  /** The steps of the points. */
  steps: number[]
  /** The value of each point. */
  values: number[]
  /** The last value, even if the points are averages because the run is long. */
  last: number
  /** The smallest value of all steps. */
  min: number
  /** The largest value of all steps. */
  max: number
  /** Lower ends of the values' intervals, if they were measured. */
  low?: number[]
  /** Upper ends of the intervals. */
  high?: number[]
}

/** An event of a run that is not a metric. */
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
  /** The column `answer`. null if there is none. */
  answer: string | null
  /** The sampled completions. */
  completions: {
    /** The text of the completion. */
    text: string
    /** Weighted sum of the rewards. null if all were null. */
    reward: number | null
    /** Rewards by reward function, before weighting. */
    rewards: Record<string, number>
  }[]
}

/** Everything that a report shows about a run. */
export interface RunData {
  /** The name of the folder. */
  name: string
  /** The trainer's name in configuration files. null: not written yet. */
  trainer: string | null
  /** The last step. */
  step: number
  /** The planned number of steps. null: not written yet. */
  steps: number | null
  /** The content of config.yaml. */
  config: string
  /**
   * The fields of the configuration by name, for example `options.steps`. Includes all defaults if the run has written
   * run.json.
   */
  options: Record<string, string>
  /** The facts in run.json about the model and the data. */
  facts: {
    /** Number of parameters of the model. */
    parameters: number
    /** Number of trained parameters. */
    trained: number
    /** The device that holds the model. */
    device: string
    /** The dtype of its weights. */
    dtype: string
    /** A description of the data. */
    data: string
  } | null
  /** Seconds between the first and the last line, without pauses before resumes. null if lines have no time. */
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
  /** How many steps are averaged into one point of a curve. 1: no averaging. */
  stepsPerPoint: number
}

/** One chart of a report. */
export interface ReportChart {
  title: string
  unit: string
  lines: { metric: string; label: string; description: string }[]
}

/** The data of the page. */
export interface ReportData {
  runs: RunData[]
  sections: { title: string; charts: ReportChart[] }[]
  /** Number of different curve colours. */
  colours: number
  /** Whether the page polls `looplm watch` for updates. */
  live: boolean
}
