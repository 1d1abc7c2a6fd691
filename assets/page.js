/* Runs as the page loads. */

/* The theme. A choice made with the header's button is kept for the next visit; ?__theme= in the address wins. Gradio sets
   the class on <body> too, and again when the system's setting changes: hence the observer. */
(() => {
  const KEY = 'sftm-theme';
  const asked = new URL(location.href).searchParams.get('__theme');
  let wanted = null;
  try { wanted = asked ? null : localStorage.getItem(KEY); } catch (error) { /* storage is off */ }
  const apply = () => {
    if (wanted && document.body.classList.contains('dark') !== (wanted === 'dark')) {
      document.body.classList.toggle('dark', wanted === 'dark');
    }
  };
  document.addEventListener('click', (event) => {
    if (!event.target.closest || !event.target.closest('[data-sf-theme]')) return;
    wanted = document.body.classList.contains('dark') ? 'light' : 'dark';
    try { localStorage.setItem(KEY, wanted); } catch (error) { /* storage is off */ }
    apply();
  });
  new MutationObserver(apply).observe(document.body, {attributes: true, attributeFilter: ['class']});
  apply();
})();

/* Gradio's sliders report that a pointer let them go, but neither that a key moved them nor that a number was typed. */
document.addEventListener('keyup', (event) => {
  const slider = event.target;
  if (slider.matches && slider.matches('input[type="range"]') && /^(Arrow|Page|Home|End)/.test(event.key)) {
    slider.dispatchEvent(new PointerEvent('pointerup', {bubbles: true}));
  }
  if (event.key === 'Enter' && slider.matches && slider.matches('input[type="number"]')) {
    const block = slider.closest('.block');
    if (block && block.querySelector('input[type="range"]')) slider.blur();
  }
});

/* Gradio's dropdowns take Tab and Shift for typed text: they open again just after the focus has left them. */
document.addEventListener('keydown', (event) => {
  const leaves = event.key === 'Tab' || event.key === 'Shift';
  if (leaves && event.target.matches && event.target.matches('input[role="combobox"]')) event.stopPropagation();
}, true);
