/**
 * A looped model as data: its sizes, its parameters, and the steps that a token takes through them. The engine computes any such
 * description (native/engine/architecture.h); a family of models is one file beside this one that makes it from a config.json.
 */

/** How a branch f (attention or MLP) joins the residual stream h: h + f(N h), h + N' f(N h), N'(h + f(N h)), or h + N' f(h). */
export type Residual = 'pre' | 'sandwich' | 'normed' | 'post'

/** Rotary positions. */
export interface RotaryEmbedding {
  /** Base of the frequencies: pair j of a head turns by position · theta^(-2j / headDim). */
  theta: number
  /** Channels that turn together: (j, j + headDim/2) or (2j, 2j + 1). Default halves. */
  pairs?: 'halves' | 'neighbours'
  /** llama3 scaling of the frequencies. */
  scaling?: {
    /** By how much the lowest frequencies are divided. */
    factor: number
    /** Wavelengths longer than `original / low` are divided by `factor`. */
    low: number
    /** Wavelengths shorter than `original / high` stay as they are; between the two the divisor is blended. */
    high: number
    /** Positions that the model was first trained with. */
    original: number
  }
}

/** What a parameter is for; the shapes are in native/engine/architecture.h. */
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

/** A tensor of the checkpoint, and which part of which role it is. */
export interface ParameterForm {
  /** The published name. */
  name: string
  /** Elements per axis. */
  shape: readonly number[]
  /** What the engine uses it for. */
  role: Role
  /** Layer, or which of several norms; default 0. */
  index?: number
  /** The first row of the role's matrix that this tensor holds; the parts of a matrix follow each other. Default 0. */
  firstRow?: number
  /** How a new model draws it. */
  initial: 'normal' | 'truncatedNormal' | 'ones' | 'zeros'
  /** Of the normals. */
  deviation?: number
  /** Instead of one for all: of equal parts of the rows, in order. */
  deviations?: readonly number[]
}

/** A step writes a register. */
interface Target {
  /** The register that is written, counted from 0. */
  to: number
}

/** A step reads a register besides the one that it writes. */
interface Source {
  /** The register that is read, counted from 0. */
  from: number
}

/** A step has parameters. */
interface Indexed {
  /** Which layer, norm or matrix of its role, counted from 0. */
  index: number
}

/** A step of a program. Registers hold a vector of D per token. */
export type Step =
  | ({
      /** Writes the embedded tokens. */
      kind: 'embed'
      /** Factor of the embedding; default 1. */
      scale?: number
    } & Target)
  | ({
      /** Writes the model's first state, runs a block on `to`, or applies an RMS norm to it (index -1: without a weight). */
      kind: 'start' | 'block' | 'norm'
    } & Target &
      Indexed)
  | ({
      /** Writes the first state of the sequence: given, drawn from its seed, or zeros. */
      kind: 'state'
    } & Target)
  | ({
      /** Adds `from` to `to`, or copies it there. */
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
  /** Of all stacks together. */
  layers: number
  /** Query heads of a layer. */
  heads: number
  /** Heads of keys and values of a layer; divides `heads`. */
  kvHeads: number
  /** Even. */
  headDim: number
  /** T */
  loops: number
  /** Added to the mean square in RMS norms. */
  normEps: number
  /** How queries and keys are turned by their position. */
  rotary: RotaryEmbedding
  /** Where a block has its norms and its residual sums. */
  residual: Residual
  /** RMS norms of queries and keys before the rotary embedding; default none. */
  queryKeyNorm?: 'none' | 'head' | 'all'
  /** σ(W x) multiplies the heads before the output projection; its rows come first in `attention`. Default false. */
  attentionGate?: boolean
  /** The tokens of a prompt attend to all of the prompt. Default false. */
  prefixSeesItself?: boolean
  /** Standard deviation of the initial states, normals redrawn outside ±3 of it. Default 0: zeros. */
  stateDeviation?: number
  /** The head is the embedding. */
  tied: boolean
  /** Whether the model has an exit gate. */
  exitGate: boolean
  /** The model was trained with `loops` loops alone: generation and trainers refuse more. Default false. */
  fixedLoops?: boolean
  /** Loops may share their planes of keys and values. Default false. */
  sharedPlanes?: boolean
  /** How many hidden states, each D per token, the steps read and write. */
  registers: number
  /** Steps before the loops. */
  begin: readonly Step[]
  /** Steps of every loop. */
  loop: readonly Step[]
  /** Steps between a loop and the head, which reads register 0. */
  read: readonly Step[]
  /**
   * What carries gradient in the family's published training: the last `loops` loops, or of each loop all but its first `constantSteps`
   * steps. Default all.
   */
  publishedBackward?:
    | {
        /** How many of the last loops carry gradient. */
        loops: number
        /** Not together with `loops`. */
        constantSteps?: never
      }
    | {
        /** Not together with `constantSteps`. */
        loops?: never
        /** Per loop, how many of its first steps carry no gradient. */
        constantSteps: readonly number[]
      }
  /** In the order of the arena. */
  parameters: readonly ParameterForm[]
  /** Ends of the names of tensors that files may hold and nobody reads. */
  ignored?: readonly string[]
}

/** The steps of `layers` blocks, from layer `first` on, on a register. */
export function blocks(first: number, layers: number, to = 0): Step[] {
  return Array.from({ length: layers }, (_, i) => ({ kind: 'block', to, index: first + i }))
}

/** Sizes from a configuration in the words of Llama and its relatives. */
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

/** The norms of layer `index` that a checkpoint names. */
export function norms(hidden: number, index: number, names: Partial<Record<Role, string>>): ParameterForm[] {
  return Object.entries(names).map(([role, name]) => ({ name, shape: [hidden], role: role as Role, index, initial: 'ones' }))
}

/** Counts from 0. */
export function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i)
}

/**
 * A description with its own exit gate, where the family has none: D → 1 on what the head reads. It starts with zeros, so that at
 * first half of what is left leaves after every loop.
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

/** The tensors of an exit gate: Ouro's names, for every family. */
export const exitGateNames = ['model.early_exit_gate.weight', 'model.early_exit_gate.bias'] as const

/** Elements of all parameters. */
export function parameterCount({ parameters }: Architecture): number {
  return parameters.reduce((sum, { shape }) => sum + shape.reduce((product, n) => product * n, 1), 0)
}

/** Planes of keys and values of a token: of every block of the loop as many as `loops`, of every other one. */
export function cachePlanes({ begin, loop, read }: Architecture, loops: number): number {
  const count = (steps: readonly Step[]) => steps.filter(({ kind }) => kind === 'block').length
  return count(loop) * loops + count(begin) + count(read)
}
