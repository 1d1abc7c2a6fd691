// The browser half of AddressBar: runs once, as the body of function(element, trigger, props, watch).
const button = element.querySelector('.sf-copy');
const said = element.querySelector('.sf-copied');
let timer = 0;

const FIRST = 'page';   // the part that names the models and the tab
const address = (window.sfAddress = window.sfAddress || {parts: {}, follow() {}});
const PATIENCE_MS = 3000;
let wantedUntil = 0;
let wanted = '';       // the first part of the address to which the person just went back or forward
let shown = {};        // the parts of the address that stands now
address.follow = follow;
address.models = models(address.parts[FIRST]);

// The models of a query, without the tab.
function models(query) {
  return [...new URLSearchParams(query || '')].filter(([name]) => name !== 'tab').join();
}

// Fields of this name, of the part itself or of the text that it holds.
function fields(query, name) {
  return new URLSearchParams(query).getAll(name).join();
}

function tabOf(query) {
  return new URLSearchParams(query || '').get('tab');
}

function follow(changed) {
  if (changed === FIRST && wanted && performance.now() < wantedUntil && tabOf(address.parts[FIRST]) !== tabOf(wanted)) {
    // The answer to a click from before the person went back.
    address.parts[FIRST] = wanted;
    return;
  }
  if (changed === FIRST) wanted = '';
  const first = address.parts[FIRST];
  if (!first) return;
  if (changed === FIRST && models(first) !== address.models) {
    // What the other parts say is of other models; they will speak again.
    if (address.models) address.parts = {[FIRST]: first};
    address.models = models(first);
  }
  const others = Object.keys(address.parts).filter((name) => name !== FIRST).sort();
  const query = [FIRST, ...others].map((name) => address.parts[name]).filter(Boolean).join('&');
  const theme = new URL(location.href).searchParams.get('__theme');
  const now = location.search.slice(1);
  const next = query + (theme ? '&__theme=' + encodeURIComponent(theme) : '');
  const before = location.href.split('#')[0];
  const was = models(shown[FIRST]);
  // A field that was not there before only completes the address.
  const isView = (was && was !== models(first)) || props.views.some((name) => fields(now, name) && fields(next, name) && fields(now, name) !== fields(next, name));
  history[isView ? 'pushState' : 'replaceState']({sfParts: {...address.parts}}, '', location.pathname + '?' + next);
  shown = {...address.parts};
  repoint(before, location.href.split('#')[0]);
}

// A tab that is clicked is in the address at once: who presses Back before the server has answered means this one.
document.addEventListener('click', (event) => {
  const tab = event.target.closest && event.target.closest('#tabs [role="tab"]');
  // Those of the page, not those within a tab.
  const name = tab && tab.closest('.tabs').id === 'tabs' && tab.dataset.tabId;
  const first = address.parts[FIRST];
  if (!first || !name || tabOf(first) === name) return;
  wanted = '';
  address.parts[FIRST] = first.replace(/(^|&)tab=[^&]*/, '$1tab=' + encodeURIComponent(name));
  follow(FIRST);
});

window.addEventListener('popstate', (event) => {
  const parts = event.state && event.state.sfParts;
  if (!parts) return;
  const names = Object.keys({...parts, ...shown}).filter((name) => parts[name] !== shown[name]);
  const onlyTab = models(parts[FIRST]) === models(shown[FIRST]) && names.every((name) => name === FIRST);
  address.parts = {...parts};
  wanted = parts[FIRST];
  wantedUntil = performance.now() + PATIENCE_MS;
  address.models = models(parts[FIRST]);
  shown = {...parts};
  trigger('select', {query: location.search.slice(1), onlyTab});
});

// Where a page has a <base>, plotly names its gradients and clip paths by the page's whole address.
function repoint(before, after) {
  if (before === after) return;
  for (const node of document.querySelectorAll('.js-plotly-plot [style*="url("], .js-plotly-plot [clip-path]')) {
    for (const name of ['style', 'clip-path']) {
      const value = node.getAttribute(name);
      if (value && value.includes(before + '#')) node.setAttribute(name, value.split(before + '#').join(after + '#'));
    }
  }
}

function say(text) {
  said.textContent = text;
  clearTimeout(timer);
  timer = setTimeout(() => { said.textContent = ''; }, 2500);
}

// Without a secure context there is no clipboard; selecting a text field and copying it works everywhere.
function copyByHand(text) {
  const field = document.createElement('textarea');
  field.value = text;
  field.style.position = 'fixed';
  document.body.append(field);
  field.select();
  const done = document.execCommand('copy');
  field.remove();
  return done;
}

button.addEventListener('click', async () => {
  const url = new URL(location.href);
  url.searchParams.delete('__theme');
  try {
    await navigator.clipboard.writeText(url.href);
    say('Copied');
  } catch (error) {
    say(copyByHand(url.href) ? 'Copied' : 'The browser refused; copy the address from its bar.');
  }
});
follow(FIRST);
