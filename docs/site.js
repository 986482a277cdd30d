// Roles that screen readers need and TypeDoc's pages lack.
const content = document.querySelector('.col-content')
content?.setAttribute('role', 'main')
document.querySelector('.col-sidebar')?.setAttribute('role', 'complementary')
document.querySelector('footer')?.setAttribute('role', 'contentinfo')
for (const table of document.querySelectorAll('.tsd-typography table')) table.tabIndex = 0 // one that scrolls takes the keyboard
for (const head of document.querySelectorAll('th:empty')) head.replaceWith(document.createElement('td'))
// A summary is a button itself, so it holds no links: permalinks go, names of modules become text. TypeDoc makes the navigation late.
function withoutLinks() {
  for (const link of document.querySelectorAll('summary a')) {
    const text = document.createElement('span')
    text.append(...(link.matches('.tsd-anchor-icon') ? [] : link.childNodes))
    link.replaceWith(text)
  }
}
withoutLinks()
new MutationObserver(withoutLinks).observe(document.body, { childList: true, subtree: true })
for (const sources of document.querySelectorAll('aside.tsd-sources')) sources.setAttribute('role', 'note')
let above = 0 // the level of the heading before: none may be skipped
for (const heading of document.querySelectorAll('h1, h2, h3, h4, h5, h6')) {
  above = Math.min(Number(heading.tagName[1]), above + 1)
  heading.setAttribute('aria-level', String(above))
}
