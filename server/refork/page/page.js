// What is shown where. Everything below takes a status as the server sent it, and trusts none of it.

const STEPS = {
  refork: ['surge', 'draining', 'sealing', 'canary', 'rolling', 'retiring'],
  rebase: ['loading', 'canary', 'rolling', 'retiring'],
};
const SECONDS_BETWEEN_ANNOUNCEMENTS = 30;
const timeline = new Timeline($('timeline'), $('reading'));
const rates = [];
let status = null;
let announced = { at: -Infinity, saved: null, phase: '', text: '' };

function showStatus(next) {
  const before = status;
  status = next;
  document.body.dataset.state = 'fresh';
  const time = (orNull(next.started_at) ?? 0) + (orNull(next.age) ?? 0);
  if (before && isNumber(next.started_at) && Math.abs(next.started_at - before.started_at) > 1.5) {
    timeline.mark({ id: `start ${next.started_at}`, kind: 'restart', time: next.started_at });
    rates.length = 0;
  }
  showSum(next);
  showTiles(next, time);
  showRollout(next, time);
  showProcesses(next);
  if (next.totals && time) timeline.add(time, orNull(next.totals.rss) ?? 0, orNull(next.totals.pss) ?? 0);
  say($('app'), plain(next.app));
  say($('versions'), versions(next));
  announce(next);
}

// Parts of a status come as they change, ahead of the next whole one.
function showPart(kind, part) {
  if (!status) return;
  const next = { ...status };
  if (kind === 'phase' && typeof part.phase === 'string') {
    next.phase = part.phase;
    if (isNumber(part.generation)) next.generation = part.generation;
  }
  if (kind === 'rollout' && part.kind && part.phase) {
    next.rollout = part.outcome ? null : part;
    if (part.outcome) next.last_rollout = part;
    else next.phase = part.phase;
  }
  status = next;
  showRollout(next, (orNull(next.started_at) ?? 0) + (orNull(next.age) ?? 0));
}

function showSum(next) {
  const totals = next.totals ?? {};
  const [rss, pss, uss] = [orNull(totals.rss), orNull(totals.pss), orNull(totals.uss)];
  const saved = orNull(totals.saved) ?? (rss !== null && pss !== null ? rss - pss : null);
  const [figure, unit] = sizeParts(saved);
  say($('saved'), figure);
  say($('saved-unit'), unit);
  const known = rss !== null && pss !== null && uss !== null;
  const share = (bytes) => (known && rss > 0 ? `${(100 * Math.max(0, bytes)) / rss}%` : '0');
  $('sum-private').style.width = share(uss);
  $('sum-shared').style.width = share(pss - uss);
  $('sum-saved').style.width = share(rss - pss);
  say($('legend-private'), size(uss));
  say($('legend-shared'), known ? size(pss - uss) : '–');
  say($('legend-saved'), size(saved));
  say($('saved-sentence'), known
    ? `${size(pss)} in use, where ${size(rss)} would be without sharing: ${percent(rss - pss, rss)} less.`
    : 'Nothing is measured yet.');
  const processes = 1 + list(next.molds).length + list(next.workers).length;
  say($('all-note'), `${count(processes)} processes`);
  say($('all-private'), size(uss));
  say($('all-pss'), size(pss));
  say($('all-rss'), size(rss));
  document.title = known ? `${size(saved)} saved · ${plain(next.app)}` : `${plain(next.app)} · refork`;
}

function showTiles(next, time) {
  const predicted = orNull(next.gain?.predicted);
  const realised = orNull(next.gain?.realised);
  say($('gain'), size(predicted));
  say($('gain-note'), gainNote(next, predicted, realised, orNull(next.gain?.promised)));

  const short = isNumber(next.ready) && isNumber(next.wanted) && next.ready < next.wanted;
  say($('ready'), `${count(next.ready)} of ${count(next.wanted)}`);
  $('ready').className = short ? 'short' : '';
  say($('ready-note'), `${plain(next.worker_class)} workers${limitNote(next.cgroup)}`);

  const sealed = Math.max(0, ...list(next.molds).map((mold) => orNull(mold.seal?.total_objects) ?? 0));
  say($('generation'), count(next.generation));
  say($('generation-note'), `sealing ${plain(next.sealing)}${sealed ? `, ${count(sealed)} objects` : ''}`);

  const slots = list(next.served).length ? list(next.served) : list(next.workers);
  const total = slots.reduce((sum, slot) => sum + (orNull(slot.requests) ?? 0), 0);
  const errors = slots.reduce((sum, slot) => sum + (orNull(slot.errors) ?? 0), 0);
  say($('rate'), rate(time, total));
  say($('rate-note'), `${count(total)} in all, ${count(errors)} ${errors === 1 ? 'error' : 'errors'}; up ${duration(next.age)}`);
  say($('all-requests'), count(total));
}

function gainNote(next, predicted, realised, promised) {
  if (next.refusal) return `not now: ${plain(next.refusal)}`;
  if (next.automatic?.stopped) return plain(next.automatic.message);
  if (realised !== null) return `the last one won ${size(realised)}${promised === null ? '' : ` of ${size(promised)} promised`}`;
  return predicted === null ? 'not known yet' : 'of what workers gained since they were ready';
}

function limitNote(cgroup) {
  const usage = orNull(cgroup?.usage) ?? orNull(cgroup?.working_set);
  const limit = orNull(cgroup?.limit);
  if (usage === null || !limit) return '';
  return `; the container uses ${size(usage)}, ${percent(usage, limit)} of its limit`;
}

// Requests a second over the last ten seconds or so; a sum that falls belongs to another server.
function rate(time, total) {
  if (rates.length && (total < rates.at(-1).total || time < rates.at(-1).time)) rates.length = 0;
  if (!rates.length || time > rates.at(-1).time) rates.push({ time, total });
  while (rates.length > 2 && rates[1].time <= time - 10) rates.shift();
  const [first, last] = [rates[0], rates.at(-1)];
  if (last.time - first.time < 0.5) return '–\u00A0/s';
  const perSecond = (last.total - first.total) / (last.time - first.time);
  return `${amount(perSecond, perSecond < 10 ? 1 : 0)}\u00A0/s`;
}

function showRollout(next, time) {
  const rollout = next.rollout ?? next.last_rollout ?? null;
  const phase = plain(next.phase);
  say($('phase'), next.rollout ? `${plain(rollout.kind)}: ${plain(rollout.phase)}` : phase);
  const note = $('rollout-note');
  note.dataset.outcome = plain(rollout?.outcome);
  say(note, rolloutNote(next, rollout, time));
  note.title = note.textContent;
  showSteps(rollout);
  if (rollout && isNumber(rollout.started_at) && isNumber(rollout.seconds)) {
    const mark = { id: plain(rollout.id), kind: plain(rollout.kind), outcome: plain(rollout.outcome), open: !rollout.outcome };
    timeline.mark({ ...mark, generation: orNull(rollout.generation), since: rollout.started_at, time: rollout.started_at + rollout.seconds });
  }
}

function rolloutNote(next, rollout, time) {
  if (!rollout) return 'No refork yet. A refork makes a warm worker the mold of the next generation.';
  const reason = rollout.reason ? `: ${plain(rollout.reason)}` : '';
  if (next.rollout) return `to generation ${count(rollout.generation)}, asked for by ${plain(rollout.trigger)}${reason}`;
  const ago = isNumber(rollout.started_at) && isNumber(rollout.seconds) ? `, ${duration(time - rollout.started_at - rollout.seconds)} ago` : '';
  return `last ${plain(rollout.kind)} to generation ${count(rollout.generation)} by ${plain(rollout.trigger)} ${plain(rollout.outcome)} after ${took(rollout.seconds)}${ago}${reason}`;
}

function showSteps(rollout) {
  const done = new Map(list(rollout?.steps).map((step) => [plain(step.phase), orNull(step.seconds)]));
  const now = rollout && !rollout.outcome ? plain(rollout.phase) : '';
  const names = [...new Set([...(STEPS[rollout?.kind ?? 'refork'] ?? []), ...done.keys(), ...(now ? [now] : [])])];
  const broken = rollout?.outcome === 'failed' ? names.find((name) => !done.has(name)) ?? names.at(-1) : '';
  const parent = $('steps');
  while (parent.children.length > names.length) parent.lastChild.remove();
  while (parent.children.length < names.length) {
    const made = element('li');
    made.append(element('b'), element('span'));
    parent.append(made);
  }
  for (const [index, name] of names.entries()) {
    const item = parent.children[index];
    const is = name === now ? 'now' : name === broken ? 'failed' : done.has(name) ? 'done' : 'open';
    const words = { now: 'now', failed: 'failed', done: took(done.get(name)), open: '\u00A0' };
    item.dataset.is = is;
    if (is === 'now') item.setAttribute('aria-current', 'step');
    else item.removeAttribute('aria-current');
    say(item.firstChild, name);
    say(item.lastChild, words[is]);
  }
}

function versions(next) {
  const told = [`refork ${plain(next.version)}`, `gunicorn ${plain(next.gunicorn)}`, `Python ${plain(next.python)}`, `pid ${plain(next.pid)}`];
  const every = orNull(next.sampling?.interval);
  if (every) told.push(`measured every ${amount(every, every < 10 ? 1 : 0)} s`);
  return told.join(' · ');
}

// A screen reader hears the headline when it has changed, but not every second.
function announce(next) {
  const saved = orNull(next.totals?.saved);
  const now = performance.now() / 1000;
  const phase = plain(next.phase);
  const moved = saved !== null && (announced.saved === null || Math.abs(saved - announced.saved) > 0.05 * Math.abs(announced.saved));
  const other = announced.phase !== phase;
  if (!other && (!moved || now - announced.at < SECONDS_BETWEEN_ANNOUNCEMENTS)) return;
  announced = { at: now, saved, phase };
  say($('announcement'), `${size(saved)} saved by sharing. The server is ${phase}, generation ${count(next.generation)}, ${count(next.ready)} of ${count(next.wanted)} workers ready.`);
}

function showConnection(state, seconds = 0) {
  const words = { live: 'live', polling: 'live, asking every 2 s', connecting: 'connecting', reconnecting: 'reconnecting' };
  const text = state === 'reconnecting' && seconds >= 2 ? `${words[state]}, next try in ${Math.round(seconds)} s` : words[state];
  const place = $('connection');
  if (state === 'reconnecting' && place.dataset.state !== state) say($('announcement'), 'The connection is lost; the figures are the last ones known.');
  if (place.dataset.state === 'reconnecting' && state !== 'reconnecting') announced.phase = '';
  place.dataset.state = state === 'polling' ? 'live' : state;
  place.dataset.by = state;
  if (state === 'reconnecting' && status) document.body.dataset.state = 'stale';
  say($('connection-text'), text);
}

for (const input of document.querySelectorAll('input[name=range]')) {
  input.addEventListener('change', () => timeline.show(Number(input.value)));
  if (input.checked) timeline.show(Number(input.value)); // a browser keeps the choice across a reload
}
showSteps(null);
// Behind a path prefix the page may be opened with or without a slash at its end.
const base = location.pathname.endsWith('/') ? location.pathname : `${location.pathname}/`;
const connection = new Connection(base, { onStatus: showStatus, onPart: showPart, onState: showConnection });
connection.open();
addEventListener('online', () => connection.open());
