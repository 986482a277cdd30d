import { createInterface } from 'node:readline'
import type { Command } from 'commander'
import pc from 'picocolors'
import type { ChatMessage } from '../data/chat-template.js'
import { type AnswerParts, opensThought, ToolCallStream } from '../data/tool-calls.js'
import { LoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import type { GenerateOptions } from '../model/types.js'
import { endTokens } from '../serve/plan.js'
import { type ModelFlags, modelOptions, openModel } from './arguments.js'
import { generationOptions, type SamplingFlags, samplingOptions } from './generate.js'
import { exitCodes, interruptedCode } from './output.js'

interface ChatFlags extends ModelFlags, SamplingFlags {
  system?: string
  think?: boolean
  /** commander's form of --no-color */
  color: boolean
}

/** What the slash commands change. */
interface Settings {
  system: string | undefined
  think: boolean | undefined
  options: GenerateOptions
}

const help = `/reset           forget the conversation
/system TEXT     set the system message and forget the conversation; without a text, none
/loops N         loops per token at most
/threshold P     leave the loops when the exit probability reaches P; 1 is full depth
/think on|off    set the template's enable_thinking
/quit            leave; Ctrl-C stops an answer, a second Ctrl-C leaves
`

/** Adds `looplm chat`. */
export function addChat(program: Command): void {
  const command = program
    .command('chat')
    .description('talk to a checkpoint in the terminal; every token is coloured by the loop it was read from')
    .argument(
      '<model>',
      'Hugging Face checkpoint folder or GGUF file with a tokenizer and a chat template, or the name of a downloaded model',
    )
    .option('--system <text>', 'system message')
    .option('--think', "set the template's enable_thinking")
    .option('--no-think', "clear the template's enable_thinking")
    .option('--no-color', 'plain text')
  samplingOptions(command, 1024)
  modelOptions(command)
    .addHelpText('after', `\nIn the chat:\n${help}`)
    .action(async (folder: string, flags: ChatFlags) => {
      process.exitCode = await chat(folder, flags)
    })
}

/** Talks until the input ends, and returns the exit code. */
async function chat(folder: string, flags: ChatFlags): Promise<number> {
  using model = await openModel(folder, flags)
  const { tokenizer } = model
  if (!tokenizer?.hasChatTemplate) {
    const message = `${folder} has no chat template; looplm generate continues a text`
    throw new LoopLMError('UNSUPPORTED', message, { operation: 'looplm chat' })
  }
  const { stdin, stdout } = process
  const terminal = stdin.isTTY === true && stdout.isTTY === true
  const paint = painter(flags.color && stdout.isTTY === true && pc.isColorSupported)
  const settings: Settings = { system: flags.system, think: flags.think, options: generationOptions(flags) }
  let messages = opening(settings)
  let answering: AbortController | undefined
  let pressed = false // Ctrl-C, since the last line

  const reader = createInterface({ input: stdin, ...(terminal ? { output: stdout } : {}), terminal, prompt: '> ' })
  const interrupt = () => {
    if (pressed) process.exit(interruptedCode('SIGINT'))
    pressed = true
    if (answering !== undefined) answering.abort()
    else stdout.write('\n(Ctrl-C again or /quit leaves)\n')
    if (terminal && answering === undefined) reader.prompt()
  }
  reader.on('SIGINT', interrupt) // a terminal in raw mode
  process.on('SIGINT', interrupt)

  if (terminal) {
    const loops = Array.from({ length: model.config.total_ut_steps }, (_, i) => paint(String(i + 1), i + 1))
    stdout.write(`${folder}: /help lists what is possible; loops ${loops.join(' ')}\n`)
    reader.prompt()
  }
  try {
    for await (const line of reader) {
      pressed = false
      const text = line.trim()
      if (text === '/quit') break
      try {
        if (text.startsWith('/')) {
          stdout.write(command(text, settings))
          if (/^\/(reset|system)\b/.test(text)) messages = opening(settings)
        } else if (text !== '') {
          answering = new AbortController()
          messages.push({ role: 'user', content: text })
          messages.push(await answer(model, messages, settings, paint, answering.signal))
        }
      } catch (error) {
        if (!(error instanceof LoopLMError)) throw error
        if (answering !== undefined) messages.pop()
        stdout.write(`error: ${error.message}\n`)
      }
      answering = undefined
      if (terminal) reader.prompt()
    }
    if (terminal) stdout.write('\n')
    return exitCodes.ok
  } finally {
    reader.close()
    process.off('SIGINT', interrupt)
  }
}

/** Writes an answer as it comes, then what it took; returns it with its thoughts apart, also when it was stopped. */
async function answer(
  model: LoopLM,
  messages: readonly ChatMessage[],
  { think, options }: Settings,
  paint: Paint,
  signal: AbortSignal,
): Promise<ChatMessage> {
  const tokenizer = model.tokenizer!
  const rendered = tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true, enableThinking: think })
  const prompt = tokenizer.encode(rendered, { addSpecialTokens: false })
  const context = model.config.max_position_embeddings
  if (prompt.length >= context) {
    const message = `the conversation has ${prompt.length} tokens and the model a context of ${context}; /reset forgets it`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'looplm chat' })
  }
  const maxNewTokens = Math.min(options.maxNewTokens ?? 1024, context - prompt.length)
  const stop = [...endTokens(model, tokenizer, true), ...(options.stop ?? [])]
  const start = performance.now()
  const counts: number[] = []
  const parts = new ToolCallStream(undefined, { calls: 'keep', thinking: opensThought(rendered) })
  let content = ''
  let thoughts = ''
  const take = ({ text, reasoning }: AnswerParts) => {
    content += text
    thoughts += reasoning
  }
  let end = ''
  try {
    for await (const chunk of model.stream(prompt, { ...options, maxNewTokens, stop, signal })) {
      counts[chunk.loop] = (counts[chunk.loop] ?? 0) + 1
      take(parts.push(chunk.text!))
      process.stdout.write(paint(printable(chunk.text!), chunk.loop))
      if (chunk.finishReason === 'length') end = ', cut at its longest'
    }
  } catch (error) {
    if (!(error instanceof LoopLMError) || error.code !== 'ABORTED') throw error
    end = ', stopped'
  }
  const seconds = (performance.now() - start) / 1000
  process.stdout.write(`\n${summary(counts, seconds, paint)}${end}\n`)
  take(parts.flush())
  return { role: 'assistant', content, ...(thoughts === '' ? {} : { reasoning_content: thoughts }) }
}

/** `12 tokens, 3.25 loops each (2: 3, 4: 9), 31 tokens/s` */
function summary(counts: readonly number[], seconds: number, paint: Paint): string {
  const used = Object.entries(counts).map(([loop, count]) => ({ loop: Number(loop), count }))
  const tokens = used.reduce((sum, { count }) => sum + count, 0)
  if (tokens === 0) return 'no tokens'
  const mean = used.reduce((sum, { loop, count }) => sum + loop * count, 0) / tokens
  const each = used.map(({ loop, count }) => `${paint(String(loop), loop)}: ${count}`).join(', ')
  return `${tokens} tokens, ${mean.toFixed(2)} loops each (${each}), ${(tokens / seconds).toFixed(0)} tokens/s`
}

const opening = ({ system }: Settings): ChatMessage[] => (system === undefined ? [] : [{ role: 'system', content: system }])

/** Carries out a slash command and returns what to say. */
function command(text: string, settings: Settings): string {
  const [, name, argument = ''] = /^\/(\S*)\s*(.*)$/s.exec(text)!
  switch (name) {
    case 'help':
      return help
    case 'reset':
      return 'forgotten\n'
    case 'system':
      settings.system = argument === '' ? undefined : argument
      return 'forgotten\n'
    case 'loops':
      settings.options = { ...settings.options, loops: numeric(argument, '/loops') }
      return ''
    case 'threshold':
      settings.options = { ...settings.options, exit: { rule: 'gate', threshold: numeric(argument, '/threshold') } }
      return ''
    case 'think':
      if (argument !== 'on' && argument !== 'off') return '/think takes on or off\n'
      settings.think = argument === 'on'
      return ''
    default:
      return `no command /${name}; there are:\n${help}`
  }
}

function numeric(text: string, name: string): number {
  const value = Number(text)
  if (text !== '' && Number.isFinite(value) && value > 0) return value
  throw new LoopLMError('INVALID_ARGUMENT', `needs a number above 0, got ${JSON.stringify(text)}`, { operation: name })
}

/** A model's control characters do not reach the terminal. */
function printable(text: string): string {
  return text.replaceAll(/[^\P{Cc}\n\t]/gu, '\ufffd')
}

type Paint = (text: string, loop: number) => string

/** Colours a text by its loop: green is early, red is late. */
function painter(colored: boolean): Paint {
  const { green, cyan, yellow, red, magenta, blue } = pc.createColors(colored)
  const palette = [green, cyan, yellow, red, magenta, blue]
  return (text, loop) => (text === '' ? '' : palette[(loop - 1) % palette.length]!(text))
}
