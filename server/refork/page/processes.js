// The table: one row for the monitor, one for the molds, one a slot. A row outlives its processes, so that nothing
// jumps while a slot rolls over: for that moment it shows the leaving process as a second, thin bar.

const rowsByKey = new Map();

function showProcesses(status) {
  const groups = grouped(status);
  const most = Math.max(MIB, ...groups.flatMap((group) => group.processes.map((process) => process.memory?.rss ?? 0)));
  const body = $('rows');
  const order = groups.map((group) => {
    const row = rowsByKey.get(group.key) ?? makeRow(group.key);
    fillRow(row, group, most);
    return row.element;
  });
  for (const key of rowsByKey.keys()) if (!groups.some((group) => group.key === key)) rowsByKey.delete(key);
  if (order.length !== body.children.length || order.some((row, index) => body.children[index] !== row)) {
    body.replaceChildren(...order);
  }
}

function grouped(status) {
  const groups = [];
  if (status.monitor_memory || isNumber(status.pid)) {
    groups.push({ key: 'monitor', name: 'monitor', processes: [{ pid: status.pid, memory: status.monitor_memory }] });
  }
  const molds = list(status.molds).toSorted((one, other) => other.generation - one.generation);
  groups.push({ key: 'mold', name: 'mold', processes: molds });
  const served = new Map(list(status.served).map((slot) => [slot.slot, slot]));
  const slots = new Map();
  for (const worker of list(status.workers)) {
    if (!isNumber(worker.slot)) continue;
    if (!slots.has(worker.slot)) slots.set(worker.slot, []);
    slots.get(worker.slot).push(worker);
  }
  for (let slot = 0; slot < Math.min(status.wanted ?? 0, 1024); slot += 1) if (!slots.has(slot)) slots.set(slot, []);
  for (const slot of [...slots.keys()].sort((one, other) => one - other)) {
    const processes = slots.get(slot).sort((one, other) => other.generation - one.generation);
    const requests = served.get(slot)?.requests ?? processes.reduce((sum, each) => sum + (each.requests ?? 0), 0);
    const errors = served.get(slot)?.errors ?? processes.reduce((sum, each) => sum + (each.errors ?? 0), 0);
    groups.push({ key: `slot ${slot}`, name: `worker ${slot}`, processes, requests, errors });
  }
  return groups;
}

function makeRow(key) {
  const made = element('tr');
  made.dataset.key = key;
  const name = element('th');
  name.scope = 'row';
  name.append(element('b'), element('small'));
  const wide = element('td');
  wide.className = 'wide';
  const figures = ['figure', 'figure extra', 'figure extra', 'figure extra'].map((kind) => {
    const cell = element('td');
    cell.className = kind;
    cell.append(element('span'), element('small'));
    return cell;
  });
  made.append(name, wide, ...figures);
  const row = { element: made, name, wide, figures };
  rowsByKey.set(key, row);
  return row;
}

function fillRow(row, group, most) {
  say(row.name.firstChild, group.name);
  const notes = group.processes.map((process) => {
    const words = [isNumber(process.generation) ? `gen ${process.generation}` : '', plain(process.state)];
    const note = element('span', words.filter(Boolean).join(' ') || `pid ${plain(process.pid)}`);
    if (process.state) note.dataset.state = plain(process.state);
    return note;
  });
  const line = notes.flatMap((note, index) => (index ? [', ', note] : [note]));
  if (row.name.lastChild.textContent !== (notes.map((note) => note.textContent).join(', ') || 'no process')) {
    row.name.lastChild.replaceChildren(...(line.length ? line : ['no process']));
  }
  row.name.title = group.processes.map((process) => `pid ${plain(process.pid)}`).join(', ');
  while (row.wide.children.length > Math.max(1, group.processes.length)) row.wide.lastChild.remove();
  while (row.wide.children.length < Math.max(1, group.processes.length)) row.wide.append(makeBar());
  for (const [index, bar] of [...row.wide.children].entries()) fillBar(bar, group.processes[index]?.memory, most);

  const memory = sumOf(group.processes);
  const gained = group.processes.map((process) => orNull(process.gained)).filter((value) => value !== null);
  const texts = [
    [size(memory?.uss), gained.length ? `+${size(Math.max(0, ...gained))} since ready` : ''],
    [size(memory?.pss), ''],
    [size(memory?.rss), ''],
    [isNumber(group.requests) ? count(group.requests) : '', group.errors ? `${count(group.errors)} errors` : ''],
  ];
  for (const [index, [figure, note]] of texts.entries()) {
    say(row.figures[index].firstChild, figure);
    say(row.figures[index].lastChild, note);
  }
}

function sumOf(processes) {
  const measured = processes.map((process) => process.memory).filter(Boolean);
  if (!measured.length) return null;
  const sum = (key) => measured.reduce((total, memory) => total + (orNull(memory[key]) ?? 0), 0);
  return { rss: sum('rss'), pss: sum('pss'), uss: sum('uss') };
}

function makeBar() {
  const bar = element('div');
  bar.className = 'bar';
  bar.setAttribute('aria-hidden', 'true'); // the figures beside it say the same
  for (const kind of ['private', 'shared']) bar.append(Object.assign(element('i'), { className: kind }));
  return bar;
}

function fillBar(bar, memory, most) {
  const rss = orNull(memory?.rss) ?? 0;
  const own = Math.min(orNull(memory?.uss) ?? 0, rss);
  bar.children[0].style.width = `${(100 * own) / most}%`;
  bar.children[1].style.width = `${(100 * (rss - own)) / most}%`;
  bar.title = memory ? `shared ${size(rss - own)}, private ${size(own)}` : '';
}
