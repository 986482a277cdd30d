// Makes a checkout name its repository: `repository`, `bugs` and `homepage` in package.json, and absolute links. README's page on a
// registry needs those, and pages in the package need them for files that are not in it. The release workflow runs this before it packs,
// because only that knows the address. npm publishes with provenance only if `repository` is where the workflow runs.
//   node tools/link-repository.mjs https://github.com/OWNER/NAME v1.2.3 [FOLDER]
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, extname, join } from 'node:path'
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

const included = ['README.md', 'LICENSE', ...manifest.files]
const isPacked = (path) =>
  !included.includes(`!${path}`) &&
  included.some(
    (entry) =>
      path === entry || path.startsWith(`${entry}/`) || (entry.includes('*') && entry === `${dirname(path)}/*${extname(path)}`),
  )

/** Links a page's files to the repository: all of them, or those that are not in the package. */
function link(page, all) {
  const path = join(folder, page)
  const text = readFileSync(path, 'utf8')
  const linked = text.replace(/(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)#\s]+)([^)\s]*)\)/g, (whole, image, words, target, anchor) => {
    const file = join(dirname(page), target)
    return all || !isPacked(file) ? `${image}[${words}](${address}/${image ? 'raw' : 'blob'}/${version}/${file}${anchor})` : whole
  })
  writeFileSync(path, linked)
}

link('README.md', true)
const docs = join(folder, 'docs')
const pages = existsSync(docs) ? readdirSync(docs).map((name) => `docs/${name}`) : []
for (const page of ['CHANGELOG.md', ...pages]) if (page.endsWith('.md') && isPacked(page)) link(page, false)
