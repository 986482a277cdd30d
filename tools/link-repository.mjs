// Makes package.json and README.md of this checkout name their repository: `repository`, `bugs` and `homepage`, and absolute links,
// which a registry's page needs. The release workflow runs it before it packs, because only that knows the address. npm publishes with
// provenance only if `repository` is where the workflow runs.
//   node tools/link-repository.mjs https://github.com/OWNER/NAME v1.2.3 [FOLDER]
import { readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const [address, version, folder = join(dirname(fileURLToPath(import.meta.url)), '..')] = process.argv.slice(2)
if (!/^https:\/\/\S+[^/]$/.test(address ?? '') || version === undefined) {
  console.error('usage: node tools/link-repository.mjs https://HOST/OWNER/NAME TAG [FOLDER]')
  process.exit(2)
}

const manifestPath = join(folder, 'package.json')
const manifest = JSON.parse(readFileSync(manifestPath, 'utf8'))
manifest.repository = { type: 'git', url: `git+${address}.git` }
manifest.bugs = `${address}/issues`
manifest.homepage = `${address}#readme`
writeFileSync(manifestPath, `${JSON.stringify(manifest, null, 2)}\n`)

const readmePath = join(folder, 'README.md')
const readme = readFileSync(readmePath, 'utf8')
const linked = readme.replace(/(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)/g, (_, image, text, target) => {
  return `${image}[${text}](${address}/${image ? 'raw' : 'blob'}/${version}/${target})`
})
writeFileSync(readmePath, linked)
