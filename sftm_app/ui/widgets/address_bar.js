// The browser half of AddressBar: runs once, as the body of function(element, trigger, props, watch).
const button = element.querySelector('.sf-copy');
const said = element.querySelector('.sf-copied');
let timer = 0;

function take() {
  if (!props.value) return;
  const theme = new URL(location.href).searchParams.get('__theme');
  const query = props.value + (theme ? '&__theme=' + encodeURIComponent(theme) : '');
  const before = location.href.split('#')[0];
  // Replaced, not pushed: a moved slider is no page to go back to.
  history.replaceState(history.state, '', location.pathname + '?' + query);
  repoint(before, location.href.split('#')[0]);
}

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
watch(['value'], take);
take();
