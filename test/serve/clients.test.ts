// The server as the clients of others meet it: OpenAI's, Vercel's AI SDK and LangChain.js, each with its own requests and readers.
import { spawnSync } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { HumanMessage, ToolMessage } from '@langchain/core/messages'
import { tool as langChainTool } from '@langchain/core/tools'
import { ChatOpenAI, OpenAI as LangChainCompletion, OpenAIEmbeddings } from '@langchain/openai'
import { APICallError, embedMany, generateObject, generateText, jsonSchema, stepCountIs, streamText, tool } from 'ai'
import OpenAI, { APIError, APIUserAbortError } from 'openai'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { z } from 'zod'
import { createServer, LoopLM, type LoopLMServer } from '../../src/index.js'
import { type Lesson, learn } from '../lessons.js'
import { writeOuroFolder } from '../ouro-folder.js'

// The name of a tool, not its schema: clients write schemas in different words.
const template = `{%- for t in tools or [] %}{{- '[' + t.function.name + ']' }}{%- endfor %}
{%- for m in messages %}
  {{- '<|im_start|>' + m.role + '\\n' + m.content }}
  {%- for c in m.tool_calls or [] %}{{- '@' + c.function.name + (c.function.arguments | tojson) }}{%- endfor %}
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}`

const user = (content: string) => ({ role: 'user', content })
const add = { type: 'function', function: { name: 'add', parameters: { type: 'object' } } }
const call = (a: number, b: number) => `<tool_call>\n{"name": "add", "arguments": {"a": ${a}, "b": ${b}}}\n</tool_call>`
const made = { function: { name: 'add', arguments: { a: 1, b: 2 } } }
const thought = '<think>\nHm, why.\n</think>\n\nBecause.'
const lessons: Lesson[] = [
  [[user('1+2?')], [add], `<think>\nI add.\n</think>\n\n${call(1, 2)}`],
  [[user('1+2?'), { role: 'assistant', content: '', tool_calls: [made] }, { role: 'tool', content: '3' }], [add], 'It is 3.'],
  [[user('hi')], undefined, 'Hello there, friend.'],
  [[user('why?')], undefined, thought],
  [[user('why?'), { role: 'assistant', content: 'Because.' }, user('hi')], undefined, 'You again.'],
]

let root: string
let model: LoopLM
let endless: LoopLM // without end tokens
const servers: LoopLMServer[] = []
let url: string
let slowUrl: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-clients-'))
  model = await learn(join(root, 'learnt'), lessons, template)
  const config = { hidden_size: 128, intermediate_size: 256, num_hidden_layers: 8 }
  const folder = await writeOuroFolder(join(root, 'endless'), { config, endTokens: [] })
  await writeFile(join(folder, 'chat_template.jinja'), '{{ messages[0].content }}') // a turn has no end token
  endless = await LoopLM.fromPretrained(folder)
  const serve = async (served: LoopLM) => {
    const server = createServer(served, { name: 'tiny', port: 0, maxNewTokens: 4000 })
    servers.push(server)
    return server.listen()
  }
  url = await serve(model)
  slowUrl = await serve(endless)
}, 120_000)
afterAll(async () => {
  await Promise.all(servers.map((server) => server.close()))
  model?.dispose()
  endless?.dispose()
  await rm(root, { recursive: true })
})

/** Claims that embeddings are the model's own vectors at length 1. */
async function expectEmbeddings(got: readonly (readonly number[])[], ...texts: string[]): Promise<void> {
  const vectors = await model.embed(texts.map((text) => model.tokenizer!.encode(text)))
  expect(got.map(({ length }) => length)).toEqual(vectors.map(({ length }) => length))
  for (const [i, vector] of vectors.entries()) {
    const length = Math.hypot(...vector)
    // a batch may be summed in another order, which test/model/embed.test.ts allows 16 roundings, and base64 has 32 bits
    for (const [k, value] of vector.entries()) expect(Math.abs(got[i]![k]! - value / length)).toBeLessThan(32 * 2 ** -24)
  }
}
/** The tokens that an answer takes, its end token among them. */
const lengthOf = (text: string) => model.tokenizer!.encode(text, { addSpecialTokens: false }).length + 1

const failure = async (call: PromiseLike<unknown>) =>
  Promise.resolve(call).then(
    (value) => {
      throw new Error(`it did not fail: ${JSON.stringify(value)}`)
    },
    (error: unknown) => error as Error & Record<string, unknown>,
  )
/** What runs on the endless server. */
const running = async () => Number(/^looplm_sequences_running (\d+)$/m.exec(await (await fetch(`${slowUrl}/metrics`)).text())![1])

describe("OpenAI's client", () => {
  const client = (at = url) => new OpenAI({ baseURL: `${at}/v1`, apiKey: 'none', maxRetries: 0 })
  const body = { model: 'tiny', temperature: 0, max_tokens: 200 }

  it('reads an answer, its thoughts and log-probabilities, whole and streamed', async () => {
    const messages = [{ role: 'user' as const, content: 'why?' }]
    const whole = await client().chat.completions.create({ ...body, messages, logprobs: true, top_logprobs: 2 })
    expect(whole.choices[0]!.message).toMatchObject({ content: 'Because.', reasoning_content: 'Hm, why.' })
    expect(whole.choices[0]!.logprobs!.content).toHaveLength(whole.usage!.completion_tokens)
    const stream = client().chat.completions.stream({ ...body, messages })
    expect(await stream.finalContent()).toBe('Because.')
    let thoughts = ''
    const scores: number[] = []
    const scored = { ...body, messages, logprobs: true, top_logprobs: 2, stream: true } as const
    for await (const { choices } of await client().chat.completions.create(scored)) {
      thoughts += (choices[0]!.delta as { reasoning_content?: string }).reasoning_content ?? ''
      scores.push(...(choices[0]!.logprobs?.content ?? []).map(({ logprob }) => logprob))
    }
    expect(thoughts).toBe('Hm, why.')
    expect(scores).toEqual(whole.choices[0]!.logprobs!.content!.map(({ logprob }) => logprob))
  })

  it('reads embeddings', async () => {
    const { data } = await client().embeddings.create({ model: 'tiny', input: ['hi', 'why?'] })
    await expectEmbeddings(
      data.map(({ embedding }) => embedding),
      'hi',
      'why?',
    )
  })

  it('can abort a request, which ends its sequence', async () => {
    const controller = new AbortController()
    const request = { model: 'tiny', prompt: 'the', max_tokens: 4000 }
    const whole = failure(client(slowUrl).completions.create(request, { signal: controller.signal }))
    await expect.poll(running).toBe(1)
    controller.abort()
    expect(await whole).toBeInstanceOf(APIUserAbortError)
    await expect.poll(running).toBe(0)
  })

  it('reports a rejected request with status, field and message', async () => {
    const messages = [{ role: 'user' as const, content: [{ type: 'image_url' as const, image_url: { url: 'data:' } }] }]
    const error = await failure(client().chat.completions.create({ ...body, messages }))
    expect(error).toBeInstanceOf(APIError)
    expect(error).toMatchObject({ status: 400, param: 'messages[0].content', code: 'invalid_value' })
    expect(error.message).toMatch(/images are not supported/)
  })
})

describe('the AI SDK', () => {
  const provider = (at = url) => createOpenAICompatible({ name: 'looplm', baseURL: `${at}/v1`, includeUsage: true })
  const request = () => ({ model: provider()('tiny'), temperature: 0, maxOutputTokens: 200, maxRetries: 0 })
  const tools = {
    add: tool({
      description: 'Adds.',
      inputSchema: jsonSchema<{ a: number; b: number }>({ type: 'object', properties: { a: { type: 'number' } } }),
      execute: ({ a, b }) => a + b,
    }),
  }

  it('reads an answer, its thoughts and the usage', async () => {
    const { text, reasoningText, finishReason, usage } = await generateText({ ...request(), prompt: 'why?' })
    expect([text, reasoningText, finishReason]).toEqual(['Because.', 'Hm, why.', 'stop'])
    expect(usage.outputTokens).toBe(lengthOf(thought))
  })

  it('streams an answer, its thoughts and the usage', async () => {
    const { fullStream, usage } = streamText({ ...request(), prompt: 'why?' })
    const said = { 'text-delta': '', 'reasoning-delta': '' }
    let deltas = 0
    for await (const part of fullStream)
      if (part.type === 'text-delta' || part.type === 'reasoning-delta') {
        said[part.type] += part.text
        deltas++
      }
    expect(said).toEqual({ 'text-delta': 'Because.', 'reasoning-delta': 'Hm, why.' })
    expect(deltas).toBeGreaterThan(8)
    expect((await usage).outputTokens).toBe(lengthOf(thought))
  })

  it('calls a function, gives its result back, and gets the answer', async () => {
    const { text, steps } = await generateText({ ...request(), prompt: '1+2?', tools, stopWhen: stepCountIs(3) })
    expect(text).toBe('It is 3.')
    expect(steps[0]!.toolCalls).toMatchObject([{ toolName: 'add', input: { a: 1, b: 2 } }])
    expect(steps[0]!.reasoningText).toBe('I add.')
  })

  it('calls a function and gets the answer in a stream', async () => {
    const { text, steps } = streamText({ ...request(), prompt: '1+2?', tools, stopWhen: stepCountIs(3) })
    expect(await text).toBe('It is 3.')
    expect((await steps)[0]!.toolResults).toMatchObject([{ toolName: 'add', output: 3 }])
  })

  it('reads embeddings', async () => {
    const { embeddings, usage } = await embedMany({ model: provider().embeddingModel('tiny'), values: ['hi', 'why?', 'hi'] })
    await expectEmbeddings(embeddings, 'hi', 'why?', 'hi')
    expect(usage.tokens).toBe(['hi', 'why?', 'hi'].flatMap((text) => model.tokenizer!.encode(text)).length)
  })

  it('can abort a request, which ends its sequence', async () => {
    const controller = new AbortController()
    const prompt = 'the'
    const call = generateText({
      ...{ model: provider(slowUrl)('tiny'), prompt, maxOutputTokens: 4000, maxRetries: 0 },
      abortSignal: controller.signal,
    })
    const failed = failure(call)
    await expect.poll(running).toBe(1)
    controller.abort()
    expect((await failed).name).toBe('AbortError')
    await expect.poll(running).toBe(0)
  })

  it('reads structured output, and reports an unsupported schema in the words of the server', async () => {
    const schema = z.object({ sum: z.number() })
    const structured = createOpenAICompatible({ name: 'looplm', baseURL: `${url}/v1`, supportsStructuredOutputs: true })
    const { object } = await generateObject({ model: structured('tiny'), schema, prompt: 'hi', maxRetries: 0 })
    expect(object).toEqual({ sum: expect.any(Number) })
    const odd = z.object({ sum: z.number().multipleOf(0.1) })
    const error = await failure(generateObject({ model: structured('tiny'), schema: odd, prompt: 'hi', maxRetries: 0 }))
    expect(APICallError.isInstance(error)).toBe(true)
    expect(error).toMatchObject({ statusCode: 400, isRetryable: false })
    expect(error.message).toMatch(/response_format\.json_schema\.schema: #\/properties\/sum\/multipleOf: .* not supported/)
  })
})

describe('LangChain.js', () => {
  const configuration = (at = url) => ({ apiKey: 'none', maxRetries: 0, configuration: { baseURL: `${at}/v1` } })
  const chat = (at = url) => new ChatOpenAI({ model: 'tiny', temperature: 0, maxTokens: 200, ...configuration(at) })
  const adder = langChainTool(({ a, b }: { a: number; b: number }) => String(a + b), {
    name: 'add',
    description: 'Adds.',
    schema: z.object({ a: z.number(), b: z.number() }),
  })

  it('reads an answer and the usage, and streams the answer', async () => {
    const answer = await chat().invoke('hi')
    expect(answer.content).toBe('Hello there, friend.')
    const rendered = model.tokenizer!.applyChatTemplate([user('hi')], { addGenerationPrompt: true })
    const input_tokens = model.tokenizer!.encode(rendered, { addSpecialTokens: false }).length
    expect(answer).toMatchObject({ usage_metadata: { input_tokens, output_tokens: lengthOf('Hello there, friend.') } })
    let text = ''
    let pieces = 0
    for await (const { content } of await chat().stream('hi')) {
      text += content
      pieces++
    }
    expect(text).toBe('Hello there, friend.')
    expect(pieces).toBeGreaterThan(5)
  })

  it('calls a function, gives its result back, and gets the answer', async () => {
    const bound = chat().bindTools([adder])
    const asked = new HumanMessage('1+2?')
    const first = await bound.invoke([asked])
    expect(first.tool_calls).toMatchObject([{ name: 'add', args: { a: 1, b: 2 } }])
    const { id, args } = first.tool_calls![0]!
    const result = new ToolMessage({ tool_call_id: id!, content: await adder.invoke(args as { a: number; b: number }) })
    expect((await bound.invoke([asked, first, result])).content).toBe('It is 3.')
  })

  it('completes a prompt, and reads log-probabilities', async () => {
    const completion = new LangChainCompletion({ model: 'tiny', temperature: 0, maxTokens: 5, ...configuration() })
    const { choices } = await new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none' }).completions.create({
      ...{ model: 'tiny', prompt: 'Hello', max_tokens: 5, temperature: 0 },
    })
    expect(await completion.invoke('Hello')).toBe(choices[0]!.text)
    const answer = await new ChatOpenAI({
      model: 'tiny',
      temperature: 0,
      maxTokens: 3,
      logprobs: true,
      topLogprobs: 2,
      ...configuration(),
    }).invoke('hi')
    const { content } = answer.response_metadata.logprobs as { content: { token: string; top_logprobs: unknown[] }[] }
    expect(content.map(({ token }) => token).join('')).toBe(answer.content)
    expect(content.map(({ top_logprobs }) => top_logprobs.length)).toEqual([2, 2, 2])
  })

  it('reads embeddings', async () => {
    const embeddings = new OpenAIEmbeddings({ model: 'tiny', ...configuration() })
    const vectors = await embeddings.embedDocuments(['hi', 'why?'])
    await expectEmbeddings(vectors, 'hi', 'why?')
    expect(await embeddings.embedQuery('hi')).toEqual(vectors[0])
  })

  it('can abort a request, which ends its sequence', async () => {
    const controller = new AbortController()
    const long = new ChatOpenAI({ model: 'tiny', maxTokens: 4000, ...configuration(slowUrl) })
    const failed = failure(long.invoke('the', { signal: controller.signal }))
    await expect.poll(running).toBe(1)
    controller.abort()
    expect((await failed).message).toMatch(/abort/i)
    await expect.poll(running).toBe(0)
  })

  it('reads structured output, and reports a wrong value in the words of the server', async () => {
    const schema = z.object({ sum: z.number() })
    const forced = chat().withStructuredOutput(schema, { method: 'functionCalling', name: 'sum' })
    expect(await forced.invoke('hi')).toEqual({ sum: expect.any(Number) })
    const penalised = new ChatOpenAI({ model: 'tiny', frequencyPenalty: 3, ...configuration() })
    expect((await failure(penalised.invoke('hi'))).message).toMatch(/frequency_penalty: .*<=2/)
  })
})

it('looplm chat keeps answers without their thoughts in the conversation', async () => {
  const folder = join(root, 'chat')
  await model.save(folder)
  const program = join(import.meta.dirname, '..', '..', 'dist', 'src', 'cli', 'main.js')
  const input = 'why?\nhi\n'
  const { stdout, stderr } = spawnSync(process.execPath, [program, 'chat', folder, '--temperature', '0'], {
    input,
    encoding: 'utf8',
  })
  expect(stderr).toBe('')
  expect(stdout).toContain('<think>\nHm, why.\n</think>\n\nBecause.')
  expect(stdout).toContain('You again.')
})
