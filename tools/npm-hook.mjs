// npm takes a script named prebuild for what must run before build, and says nothing of that to the script. Its own name tells.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'

/** Command line and parent of a process; npm writes what it was asked into its own. */
function processInfo(pid) {
  if (process.platform === 'linux') {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    const parent = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]
    return { command: readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').trim(), parent }
  }
  const { stdout } = spawnSync('ps', ['-o', 'ppid=,args=', '-p', pid], { encoding: 'utf8' })
  const [, parent, command] = /^\s*(\d+)\s+(.*)/.exec(stdout)
  return { command, parent }
}

/** Whether npm runs this process not because it was asked to, but before or after another script: as `npm run build` runs prebuild. */
export function runsAsHook() {
  const event = process.env.npm_lifecycle_event
  const script = /^(?:pre|post)(.+)$/.exec(event ?? '')?.[1]
  try {
    let pid = String(process.ppid)
    for (let depth = 0; depth < 4; depth++) {
      const { command, parent } = processInfo(pid)
      const [, asked] = /^npm (?:run|run-script|rum|urn) (\S+)/.exec(command) ?? []
      if (asked !== undefined) return asked === script
      pid = parent
    }
  } catch {} // a system that does not tell
  return false
}
