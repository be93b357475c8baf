// What everybody needs of a page: names, labels, headers, headings in order. Returns the problems.
() => {
  const problems = [];
  const say = (rule, e) => problems.push(`${rule}: ${e.outerHTML.slice(0, 90)}`);
  const name = (e) => (e.getAttribute('aria-label') || e.getAttribute('title') || e.textContent || '').trim();
  if (!document.documentElement.lang) problems.push('no lang');
  if (!document.title) problems.push('no title');
  if (document.querySelectorAll('h1').length !== 1 || document.querySelectorAll('main').length !== 1) problems.push('h1, main');
  document.querySelectorAll('img').forEach((e) => e.alt || say('alt', e));
  document.querySelectorAll('svg, [role=img], [role=region], nav').forEach((e) => e.getAttribute('aria-label') || say('label', e));
  document.querySelectorAll('th').forEach((e) => e.scope || say('scope', e));
  document.querySelectorAll('table').forEach((e) => e.querySelector('th') || say('table without header', e));
  document.querySelectorAll('input, select').forEach((e) => e.labels.length || say('control', e));
  document.querySelectorAll('a, button, summary').forEach((e) => name(e) || say('name', e));
  document.querySelectorAll('dl > *').forEach((e) => e.matches('div') && e.querySelector('dt') && e.querySelector('dd') || say('dl', e));
  document.querySelectorAll('[tabindex]').forEach((e) => e.tabIndex > 0 && say('tabindex', e));
  let level = 0;
  for (const h of document.querySelectorAll('h1, h2, h3, h4')) {
    const next = +h.tagName[1];
    if (next > level + 1) say('heading skips', h);
    level = next;
  }
  return problems;
}
