/**
 * A looped model as data: its sizes, its parameters, and the steps that a token runs. The engine computes any such description
 * (native/engine/architecture.h). A family of models is one file in src/model/architectures that creates it from a config.json.
 */

/** How a branch f (attention or MLP) joins the residual stream h: h + f(N h), h + N' f(N h), N'(h + f(N h)), or h + N' f(h). */
export type Residual = 'pre' | 'sandwich' | 'normed' | 'post'

/** Rotary positions. */
export interface RotaryEmbedding {
  /** Base of the frequencies. Pair j of a head is rotated by position · theta^(-2j / headDim). */
  theta: number
  /** Which channels form a pair: (j, j + headDim/2) or (2j, 2j + 1). Defaults to halves. */
  pairs?: 'halves' | 'neighbours'
  /** llama3 scaling of the frequencies. */
  scaling?: {
    /** The divisor of the lowest frequencies. */
    factor: number
    /** Wavelengths longer than `original / low` are divided by `factor`. */
    low: number
    /** Wavelengths shorter than `original / high` do not change. Between the two the divisor is interpolated. */
    high: number
    /** Number of positions of the model's first training. */
    original: number
  }
}

/** The purpose of a parameter. Shapes are in native/engine/architecture.h. */
export type Role =
  | 'embedding'
  | 'head'
  | 'exitGate'
  | 'exitGateBias'
  | 'norm'
  | 'inject'
  | 'start'
  | 'attention'
  | 'attentionBias'
  | 'attentionOutput'
  | 'attentionOutputBias'
  | 'gateUp'
  | 'gateUpBias'
  | 'down'
  | 'downBias'
  | 'attentionNorm'
  | 'attentionNorm2'
  | 'mlpNorm'
  | 'mlpNorm2'
  | 'queryNorm'
  | 'keyNorm'

/** A tensor of the checkpoint, and which part of which role it holds. */
export interface ParameterForm {
  /** The published name. */
  name: string
  /** Elements per axis. */
  shape: readonly number[]
  /** What the engine uses it for. */
  role: Role
  /** Index of the layer, or of the norm if there are several. Defaults to 0. */
  index?: number
  /** The first row of the role's matrix that this tensor holds. The parts of a matrix follow each other. Defaults to 0. */
  firstRow?: number
  /** The initial values in a new model. */
  initial: 'normal' | 'truncatedNormal' | 'ones' | 'zeros'
  /** Standard deviation of the normal distributions. */
  deviation?: number
  /** Instead of `deviation`: one per equal part of the rows, in order. */
  deviations?: readonly number[]
}

/** A step that writes a register. */
interface Target {
  /** The register that is written, counted from 0. */
  to: number
}

/** A step that also reads another register. */
interface Source {
  /** The register that is read, counted from 0. */
  from: number
}

/** A step with parameters. */
interface Indexed {
  /** The index of the layer, norm or matrix among those of its role, counted from 0. */
  index: number
}

/** A step of a program. A register holds a vector of D numbers per token. */
export type Step =
  | ({
      /** Writes the embedded tokens. */
      kind: 'embed'
      /** Factor of the embedding. Defaults to 1. */
      scale?: number
    } & Target)
  | ({
      /** Writes the model's initial state, runs a block on `to`, or applies an RMS norm to it (index -1: without a weight). */
      kind: 'start' | 'block' | 'norm'
    } & Target &
      Indexed)
  | ({
      /** Writes the initial state of the sequence: given, drawn from its seed, or zeros. */
      kind: 'state'
    } & Target)
  | ({
      /** Adds `from` to `to`, or copies it to `to`. */
      kind: 'add' | 'copy'
    } & Target &
      Source)
  | ({
      /** to = W [to ; from], with W [D, 2D]. */
      kind: 'inject'
    } & Target &
      Source &
      Indexed)

/** What a model computes, as data: sizes, steps and parameters. The engine computes any such description. */
export interface Architecture {
  /** The name of the family. */
  family: string
  /** V */
  vocabulary: number
  /** D */
  hidden: number
  /** F */
  intermediate: number
  /** Number of layers of all stacks together. */
  layers: number
  /** Number of query heads per layer. */
  heads: number
  /** Number of key/value heads per layer; divides `heads`. */
  kvHeads: number
  /** Dimensions of a head; an even number. */
  headDim: number
  /** T */
  loops: number
  /** Epsilon that RMS norms add to the mean square. */
  normEps: number
  /** The rotary embedding of queries and keys. */
  rotary: RotaryEmbedding
  /** The positions of a block's norms and residual sums. */
  residual: Residual
  /** RMS norms of queries and keys before the rotary embedding. Defaults to none. */
  queryKeyNorm?: 'none' | 'head' | 'all'
  /** Multiply the heads by σ(W x) before the output projection. The rows of W come first in `attention`. Defaults to false. */
  attentionGate?: boolean
  /** Prompts have bidirectional attention: their tokens attend to the whole prompt. Defaults to false. */
  prefixSeesItself?: boolean
  /** Standard deviation of the initial states: normal draws, repeated outside of ±3 deviations. Defaults to 0: zeros. */
  stateDeviation?: number
  /** Whether the head is the embedding. */
  tied: boolean
  /** Whether the model has an exit gate. */
  exitGate: boolean
  /** The model only supports its `loops`: generation and trainers reject more. Defaults to false. */
  fixedLoops?: boolean
  /** Whether loops may share their planes of keys and values. Defaults to false. */
  sharedPlanes?: boolean
  /** How many hidden states, each D per token, the steps read and write. */
  registers: number
  /** Steps before the loops. */
  begin: readonly Step[]
  /** Steps of every loop. */
  loop: readonly Step[]
  /** Steps between a loop and the head. The head reads register 0. */
  read: readonly Step[]
  /**
   * What carries gradient in the family's published training: the last `loops` loops, or in each loop all steps but the first
   * `constantSteps`. Defaults to all.
   */
  publishedBackward?:
    | {
        /** How many of the last loops carry gradient. */
        loops: number
        /** Cannot be combined with `loops`. */
        constantSteps?: never
      }
    | {
        /** Cannot be combined with `constantSteps`. */
        loops?: never
        /** Per loop, how many of its first steps carry no gradient. */
        constantSteps: readonly number[]
      }
  /** In the order of the parameters in memory. */
  parameters: readonly ParameterForm[]
  /** Suffixes of tensors that files may contain but the model does not use. */
  ignored?: readonly string[]
}

/** The steps of `layers` blocks on a register, beginning with layer `first`. */
export function blocks(first: number, layers: number, to = 0): Step[] {
  return Array.from({ length: layers }, (_, i) => ({ kind: 'block', to, index: first + i }))
}

/** Sizes from a configuration with the field names of Llama and its relatives. */
export function llamaSizes(config: {
  vocab_size: number
  hidden_size: number
  intermediate_size: number
  num_attention_heads: number
  num_key_value_heads: number
  head_dim: number
  rms_norm_eps: number
  rope_theta: number
  tie_word_embeddings: boolean
}) {
  return {
    vocabulary: config.vocab_size,
    hidden: config.hidden_size,
    intermediate: config.intermediate_size,
    heads: config.num_attention_heads,
    kvHeads: config.num_key_value_heads,
    headDim: config.head_dim,
    normEps: config.rms_norm_eps,
    rotary: { theta: config.rope_theta },
    tied: config.tie_word_embeddings,
  }
}

/** The norms of layer `index`, with their names in the checkpoint. */
export function norms(hidden: number, index: number, names: Partial<Record<Role, string>>): ParameterForm[] {
  return Object.entries(names).map(([role, name]) => ({ name, shape: [hidden], role: role as Role, index, initial: 'ones' }))
}

/** The numbers 0 .. count-1. */
export function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i)
}

/**
 * Adds an exit gate to an architecture without one: D → 1 on the head's input. It starts at zero, so that at first half of
 * the remaining probability exits after every loop.
 */
export function withExitGate(architecture: Architecture): Architecture {
  if (architecture.exitGate) return architecture
  const [weight, bias] = exitGateNames
  const gate: ParameterForm[] = [
    { name: weight, shape: [1, architecture.hidden], role: 'exitGate', initial: 'zeros' },
    { name: bias, shape: [1], role: 'exitGateBias', initial: 'zeros' },
  ]
  return { ...architecture, exitGate: true, parameters: [...architecture.parameters, ...gate] }
}

/** The tensors of an exit gate. Every family uses Ouro's names. */
export const exitGateNames = ['model.early_exit_gate.weight', 'model.early_exit_gate.bias'] as const

/** Total number of parameters. */
export function parameterCount({ parameters }: Architecture): number {
  return parameters.reduce((sum, { shape }) => sum + shape.reduce((product, n) => product * n, 1), 0)
}

/** Planes of keys and values of a token: `loops` for every block of the loop, one for every other block. */
export function cachePlanes({ begin, loop, read }: Architecture, loops: number): number {
  const count = (steps: readonly Step[]) => steps.filter(({ kind }) => kind === 'block').length
  return count(loop) * loops + count(begin) + count(read)
}
