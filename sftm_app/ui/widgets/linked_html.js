// The browser half of LinkedHtml: runs once, as the body of function(element, trigger, props, watch).
element.addEventListener('click', (event) => {
  const link = event.target.closest && event.target.closest('[data-sf-show]');
  if (!link) return;
  event.preventDefault();
  const place = document.getElementById(link.dataset.sfShow);
  const calm = window.matchMedia('(prefers-reduced-motion: reduce)').matches;
  if (place) place.scrollIntoView({behavior: calm ? 'auto' : 'smooth', block: 'nearest'});
  const target = JSON.parse(link.dataset.sfGo || '[]');
  if (target.length) trigger('select', {x: null, y: null, customdata: target, curve: 0});
});
