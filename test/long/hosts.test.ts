// Two hosts on one machine: network namespaces joined by a pair of virtual interfaces with the delay and the losses of a bad network
// (netem, or native/test/slow_link.cpp where the kernel has none). Training by two processes, one on each host, gives the bits of two
// processes on one host.
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { installed, launch } from '../mpi.js'
import { build } from '../native-tests.js'

const spaces = [0, 1].map((host) => `looplm${process.pid}h${host}`)
const address = (host: number) => `10.77.0.${host + 1}`
const ip = (...args: string[]) => spawnSync('ip', args, { encoding: 'utf8' })

/** Why two hosts cannot be made here; undefined: they can. */
function refused(): string | undefined {
  if (!installed.includes('openmpi')) return 'Open MPI is not installed'
  const made = ip('netns', 'add', spaces[0]!)
  if (made.error !== undefined) return 'the program ip is not here (Debian: apt-get install iproute2)'
  if (made.status !== 0) return `network namespaces are not permitted: ${made.stderr.trim()}`
  ip('netns', 'del', spaces[0]!)
  return undefined
}
const must = (...args: string[]) => execFileSync(args[0]!, args.slice(1), { stdio: 'pipe' })

/** Joins the hosts by a pair of devices with the delay and the losses of netem; whether the kernel has it. */
function netem(): boolean {
  must('ip', 'link', 'add', 'veth0', 'netns', spaces[0]!, 'type', 'veth', 'peer', 'name', 'veth0', 'netns', spaces[1]!)
  const rule = ['tc', 'qdisc', 'add', 'dev', 'veth0', 'root', 'netem', 'delay', '5ms', 'loss', '1%']
  return spaces.every((space) => ip('netns', 'exec', space, ...rule).status === 0)
}

/** The same by a program of ours. */
async function slowCable(): Promise<ChildProcess> {
  must('cmake', '--build', build, '--target', 'looplm_slow_link')
  const cable = spawn(join(build, 'looplm_slow_link'), [...spaces, '5', '0.01'], { stdio: ['pipe', 'pipe', 'inherit'] })
  const [ready] = await once(cable.stdout!, 'data')
  expect(String(ready)).toBe('ready\n')
  return cable
}

const reason = refused()
if (reason !== undefined) console.log(`two hosts: left out, ${reason}`)

describe.runIf(reason === undefined)('two hosts with 5 ms and 1 % of losses between them', () => {
  const folder = mkdtempSync(join(tmpdir(), 'looplm-hosts-'))
  const agent = join(folder, 'agent.sh')
  let cable: ChildProcess | undefined

  beforeAll(async () => {
    for (const space of spaces) must('ip', 'netns', 'add', space)
    const device = netem() ? 'veth0' : 'slow0'
    if (device === 'slow0') cable = await slowCable()
    for (const [host, space] of spaces.entries()) {
      const inside = (...args: string[]) => must('ip', 'netns', 'exec', space, ...args)
      inside('ip', 'address', 'add', `${address(host)}/24`, 'dev', device)
      inside('ip', 'link', 'set', device, 'up')
      inside('ip', 'link', 'set', 'lo', 'up')
    }
    console.log(`two hosts: 5 ms and 1 % of losses in each direction by ${cable === undefined ? 'netem' : 'looplm_slow_link'}`)
    // what the launcher calls in the place of ssh: HOST COMMAND…
    const cases = spaces.map((space, host) => `${address(host)}) space=${space};;`).join(' ')
    writeFileSync(agent, `#!/bin/sh\nhost=$1; shift\ncase $host in ${cases} esac\nexec ip netns exec "$space" sh -c "$*"\n`)
    chmodSync(agent, 0o755)
  })
  afterAll(async () => {
    if (cable !== undefined) {
      cable.stdin!.end()
      const [counted] = await once(cable.stdout!, 'data')
      console.log(`two hosts: ${String(counted).trim()}`)
      expect(Number(/(\d+) lost/.exec(String(counted))?.[1])).toBeGreaterThan(10)
    }
    for (const space of spaces) ip('netns', 'del', space)
    rmSync(folder, { recursive: true })
  })

  /** What the two processes wrote. */
  function onTwoHosts(program: string, args: string[], env: Record<string, string>) {
    const own = '10.77.0.0/24'
    const mpi = ['--allow-run-as-root', '--mca', 'plm_rsh_agent', agent, '--mca', 'btl', 'tcp,self', '--mca', 'pml', 'ob1']
    const networks = ['--mca', 'btl_tcp_if_include', own, '--mca', 'oob_tcp_if_include', own]
    const hosts = ['--host', `${address(0)}:1,${address(1)}:1`, '-n', '2']
    const variables = Object.entries(env).flatMap(([name, value]) => ['-x', `${name}=${value}`])
    const command = ['netns', 'exec', spaces[0]!, 'mpirun.openmpi', ...mpi, ...networks, ...hosts, ...variables, program, ...args]
    return spawnSync('ip', command, { encoding: 'utf8', env: { ...process.env, VITEST: '' }, timeout: 600_000 })
  }
  const written = (place: string) =>
    readdirSync(place)
      .sort()
      .map((file) => JSON.parse(readFileSync(join(place, file), 'utf8')))

  /** The same program by two processes on one host and on two: what each rank wrote. */
  async function both(program: string, scenario: string, env: Record<string, string> = {}) {
    const places = ['near', 'far'].map((name) => mkdtempSync(join(folder, `${name}-`)))
    const [near, far] = places.map((place) => ({ ...env, LOOPLM_RANK_FOLDER: place }))
    const one = await launch('openmpi', 2, process.execPath, [program, scenario], near)
    expect(one.status, one.stderr).toBe(0)
    const two = onTwoHosts(process.execPath, [program, scenario], far!)
    expect(two.status, two.stderr).toBe(0)
    return places.map(written)
  }

  it('a training loop gives the bits of one host, also with gradients sent during backward', async () => {
    const [near, far] = await both(join(import.meta.dirname, '..', 'parallel-rank.mjs'), 'train')
    expect(near!.length).toBe(2)
    expect(far).toEqual(near)
  })

  it('a run of trainers gives the bits of one host', async () => {
    const [near, far] = await both(join(import.meta.dirname, '..', 'trainer-rank.mjs'), 'pretrain,lora', { LOOPLM_STEPS: '3' })
    expect(near!.length).toBe(2)
    for (const [rank, found] of far!.entries())
      for (const name of ['pretrain', 'lora']) {
        expect(found[name].first).toBe(near![rank][name].first)
        expect(found[name].hash).toBe(near![rank][name].hash)
      }
  })
})
