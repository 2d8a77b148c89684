"use strict";
// Plain script of the pages. Text of others goes through textContent only.
(() => {
  const $ = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children);
    return node;
  };

  const option = (value, label = value) => {
    const node = make("option", { value });
    node.textContent = label;
    return node;
  };

  for (const node of all(".needs-script")) node.hidden = false;

  // Theme

  const THEMES = ["system", "light", "dark"];
  const remembered = () => {
    try { return localStorage.getItem("kompakt-theme"); } catch { return null; }
  };
  const setTheme = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    $("theme").textContent = `Theme: ${theme}`;
    // pages from files may not be allowed to remember anything
    try { localStorage.setItem("kompakt-theme", theme); } catch { /* as before */ }
  };
  let theme = THEMES.includes(remembered()) ? remembered() : "system";
  setTheme(theme);
  $("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    setTheme(theme);
  });

  // Status line: what is under the pointer or the focus

  const say = (text) => {
    $("status").textContent = text || "";
    $("status").hidden = !text;
  };
  const under = (target) => {
    const piece = target.closest(".source > span[title]");
    if (piece) return piece.title;
    const point = target.closest(".point");
    return point ? point.querySelector("title").textContent.replaceAll("\n", ", ") : "";
  };
  const mark = (piece) => {
    for (const node of all(".source > .at")) node.classList.remove("at");
    if (piece) piece.classList.add("at");
  };
  document.addEventListener("pointerover", (event) => {
    say(under(event.target));
    mark(event.target.closest(".source > span[title]"));
  });
  document.addEventListener("focusin", (event) => {
    const text = under(event.target);
    if (text) say(text);
    mark(event.target.closest(".source > span[title]"));
  });
  document.addEventListener("focusout", () => say(""));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") say("");
  });

  // One stop of the tab key for each document, and arrows within it: thousands of stops would lock people in

  const reachable = (source) => {
    const pieces = all(":scope > span[title]", source);
    pieces.forEach((piece, index) => { piece.tabIndex = index ? -1 : 0; });
  };
  document.addEventListener("keydown", (event) => {
    const piece = event.target.closest?.(".source > span[title]");
    const step = { ArrowRight: "next", ArrowDown: "next", ArrowLeft: "previous", ArrowUp: "previous" }[event.key];
    if (!piece || !step) return;
    event.preventDefault();
    let other = piece[`${step}ElementSibling`];
    while (other && !other.getClientRects().length) other = other[`${step}ElementSibling`];
    if (!other) return;
    piece.tabIndex = -1;
    other.tabIndex = 0;
    other.focus();
  });
  for (const source of all(".source")) reachable(source);

  // Printing shows what is folded

  let folded = [];
  addEventListener("beforeprint", () => {
    folded = all("details:not([open])");
    for (const node of folded) node.open = true;
  });
  addEventListener("afterprint", () => {
    for (const node of folded) node.open = false;
  });

  // Charts

  const metric = $("metric");
  if (metric) {
    const show = () => {
      for (const node of all("[data-metric]")) node.hidden = node.dataset.metric !== metric.value;
    };
    metric.addEventListener("change", show);
    show();
  }
  const boxes = all("input[data-series]");
  const showSeries = (box) => {
    for (const node of all(`.series.${box.dataset.series}`)) node.classList.toggle("off", !box.checked);
  };
  const setAll = (isShown) => {
    for (const box of boxes) {
      box.checked = isShown;
      showSeries(box);
    }
  };
  $("show-all")?.addEventListener("click", () => setAll(true));
  $("hide-all")?.addEventListener("click", () => setAll(false));
  for (const box of boxes) {
    box.addEventListener("change", () => showSeries(box));
    showSeries(box);
    const label = box.closest("label");
    const front = (isFront) => {
      for (const node of all(".charts svg")) node.classList.toggle("has-focus-series", isFront && box.checked);
      for (const node of all(`.charts .series.${box.dataset.series}`)) node.classList.toggle("front", isFront);
    };
    label.addEventListener("pointerenter", () => front(true));
    label.addEventListener("pointerleave", () => front(false));
  }

  // Paired differences

  const table = $("difference-table");
  if (table) {
    const rows = all("tbody tr", table);
    const cell = (row, name) => row.querySelector(`.${name}`).textContent;
    const fill = (select, column) => {
      const names = [...new Set(rows.map((row) => cell(row, column)))];
      select.append(...names.map((name) => option(name)));
      if (names.length > 1) select.append(option("", "all"));
    };
    const [task, kind, sure] = [$("difference-task"), $("difference-metric"), $("difference-sure")];
    fill(task, "of-task");
    fill(kind, "of-metric");
    const show = () => {
      for (const row of rows) {
        row.hidden = Boolean(
          (task.value && cell(row, "of-task") !== task.value) || (kind.value && cell(row, "of-metric") !== kind.value)
          || (sure.checked && !row.classList.contains("sure")),
        );
      }
    };
    for (const control of [task, kind, sure]) control.addEventListener("change", show);
    show();
  }

  // Examples

  const raw = $("examples-data");
  if (!raw) return;
  const data = JSON.parse(raw.textContent);
  const LEVELS = 6;
  const SVG = "http://www.w3.org/2000/svg";
  const pick = { task: $("pick-task"), example: $("pick-example"), method: $("pick-method"), budget: $("pick-budget") };
  const unique = (values) => [...new Set(values)];
  const share = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)}%` : "–");
  const number = (value) => value.toLocaleString("en-US");

  const refill = (select, names, labels = names) => {
    const before = select.value;
    select.replaceChildren(...names.map((name, index) => option(name, labels[index])));
    if (names.includes(before)) select.value = before;
  };

  const facts = (node, pairs) => {
    node.replaceChildren(...pairs.filter(([, value]) => value !== null && value !== "").map(([name, value, isWide]) => {
      const [term, detail] = [make("dt"), make("dd", { dir: "auto" })];
      term.textContent = name;
      detail.textContent = value;
      return make("div", { class: isWide ? "wide" : null }, term, detail);
    }));
  };

  // whole words only, in scripts that have them: an answer such as "no" would stand everywhere
  const finder = (answers) => {
    const edge = "[\\p{Script=Latin}\\p{Script=Greek}\\p{Script=Cyrillic}\\p{N}]";
    const escaped = answers.map((answer) => answer.trim()).filter(Boolean).sort((a, b) => b.length - a.length)
      .map((answer) => answer.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&").replace(/\s+/g, "\\s+"));
    return escaped.length ? new RegExp(`(?<!${edge})(?:${escaped.join("|")})(?!${edge})`, "giu") : null;
  };
  const occurrences = (text, pattern) => (pattern ? [...text.matchAll(pattern)].map((m) => [m.index, m.index + m[0].length]) : []);

  // append text[start:end], with the parts that lie in a range outlined
  const appendMarked = (node, text, start, end, ranges) => {
    let at = start;
    for (const [from, to] of ranges) {
      if (to <= at || from >= end) continue;
      if (from > at) node.append(text.slice(at, from));
      const outlined = make("mark");
      outlined.textContent = text.slice(Math.max(from, at), Math.min(to, end));
      node.append(outlined);
      at = Math.min(to, end);
    }
    if (at < end) node.append(text.slice(at, end));
  };

  const fate = (stage, isKept, score) => {
    const by = stage ? ` by ${stage}` : "";
    return `${isKept ? "kept" : "dropped"}${by}${score === null ? "" : `, score ${score}`}`;
  };

  const strip = (parts, length) => {
    const node = document.createElementNS(SVG, "svg");
    const sizes = { class: "strip", viewBox: "0 0 1000 6", preserveAspectRatio: "none", "aria-hidden": "true" };
    for (const [name, value] of Object.entries(sizes)) node.setAttribute(name, value);
    for (const [start, end] of parts) {
      const rect = document.createElementNS(SVG, "rect");
      const box = { x: (1000 * start) / length, y: 0, width: (1000 * (end - start)) / length, height: 6 };
      for (const [name, value] of Object.entries(box)) rect.setAttribute(name, value);
      node.append(rect);
    }
    return node;
  };

  const heading = (id, title, note) => {
    const node = make("h4");
    if (title) node.append(make("bdi", {}, title));
    node.append(make("bdi", { class: "id" }, id), make("span", { class: "share" }, note));
    return node;
  };

  const sourceBox = (isMono, label) => make("div", { class: isMono ? "source mono" : "source", dir: "auto", role: "group", "aria-label": label });

  const documentInPlace = ([place, pieces], sources, pattern) => {
    const [id, title, text, isMono] = sources[place];
    const box = sourceBox(isMono, `Text of document ${id}`);
    const ranges = occurrences(text, pattern);
    const kept = [];
    let at = 0;
    for (let i = 0; i < pieces.length; i += 3) {
      const [length, code, score] = pieces.slice(i, i + 3);
      const isKept = code % 2 === 1;
      const level = Math.floor(code / 2) % LEVELS;
      const stage = data.stages[Math.floor(code / 2 / LEVELS)];
      const span = make("span", { class: isKept ? (level ? `k t${level}` : "k") : "d", title: fate(stage, isKept, score) });
      appendMarked(span, text, at, at + length, ranges);
      if (isKept) kept.push([at, at + length]);
      box.append(span);
      at += length;
    }
    if (!pieces.length) appendMarked(box, text, 0, text.length, ranges);
    reachable(box);
    const total = kept.reduce((sum, [start, end]) => sum + end - start, 0);
    const note = pieces.length ? `${share(total, text.length)} of its characters kept` : "not known what was kept";
    const article = make("article", { class: "document" }, heading(id, title, note));
    if (pieces.length) article.append(strip(kept, text.length || 1));
    article.append(box);
    return article;
  };

  const resultText = (view, pattern) => {
    const box = sourceBox(false, "The result");
    appendMarked(box, view.text, 0, view.text.length, occurrences(view.text, pattern));
    const note = make("p", { class: "muted" });
    note.textContent = "This method does not say which ranges it kept. This is its result:";
    const article = make("article", { class: "document" }, note, box);
    const sources = make("details", {}, make("summary", {}, "The sources"));
    return [article, sources];
  };

  const example = () => data.examples[Number(pick.example.value)];
  const yesNo = (value) => (value === null ? null : value ? "yes" : "no");

  const showView = () => {
    const { sources, views, answers } = example();
    const view = views.find((one) => one.method === pick.method.value && one.budget === pick.budget.value);
    for (const button of all("#overview button")) {
      button.setAttribute("aria-pressed", String(views[Number(button.value)] === view));
    }
    say("");
    $("documents").replaceChildren();
    $("shown").textContent = view ? `${view.method}, asked ${view.budget}` : "Nothing to show";
    facts($("facts"), []);
    if (!view) return;
    facts($("facts"), [
      ["Tokens", `${number(view.before)} → ${number(view.after)} (${share(view.after, view.before)} kept)`],
      ["Outcome", view.outcome],
      ["Answer in the result", yesNo(view.answered)],
      ["Reader answered", view.reader],
      ["Time", view.seconds],
    ]);
    const pattern = finder(answers);
    const inPlace = view.documents.map((one) => documentInPlace(one, sources, pattern));
    if (view.text === undefined) {
      $("documents").append(...inPlace);
    } else {
      const [article, folded] = resultText(view, pattern);
      folded.append(...inPlace);
      $("documents").append(article, ...(inPlace.length ? [folded] : []));
    }
  };

  const overviewCell = (view, index) => {
    const answered = yesNo(view.answered);
    const button = make("button", { type: "button", value: index, "aria-pressed": "false", title: `${view.method}, asked ${view.budget}` });
    button.append(make("span", { class: answered }, answered ?? "shown"), make("small", {}, share(view.after, view.before)));
    button.addEventListener("click", () => {
      pick.method.value = view.method;
      showBudgets();
      pick.budget.value = view.budget;
      showView();
    });
    return make("td", {}, button);
  };

  const overview = () => {
    const { views } = example();
    const isReference = (view) => data.roles[view.method] === "reference";
    const budgets = unique(views.filter((view) => !isReference(view)).map((view) => view.budget));
    const columns = budgets.length ? budgets : unique(views.map((view) => view.budget));
    const head = make("tr", {}, make("th", { scope: "col" }, "Method"));
    for (const budget of columns) head.append(make("th", { scope: "col" }, budget));
    const body = make("tbody");
    for (const method of unique(views.map((view) => view.method))) {
      const row = make("tr", {}, make("th", { scope: "row" }, make("bdi", {}, method)));
      const own = views.map((view, index) => [view, index]).filter(([view]) => view.method === method);
      if (own.length === 1 && !columns.includes(own[0][0].budget)) {
        const cell = overviewCell(...own[0]);
        cell.colSpan = columns.length;
        row.append(cell);
      } else {
        for (const budget of columns) {
          const found = own.find(([view]) => view.budget === budget);
          row.append(found ? overviewCell(...found) : make("td", {}, "–"));
        }
      }
      body.append(row);
    }
    $("overview").replaceChildren(make("thead", {}, head), body);
  };

  const showBudgets = () => {
    const own = example().views.filter((view) => view.method === pick.method.value);
    refill(pick.budget, unique(own.map((view) => view.budget)));
  };

  const showExample = () => {
    const { question, answers, views } = example();
    facts($("question"), [["Question", question, true], ["Answers", answers.join(" · "), true]]);
    refill(pick.method, unique(views.map((view) => view.method)));
    overview();
    showBudgets();
    showView();
  };

  const showTask = () => {
    const own = data.examples.map((one, index) => [String(index), one]).filter(([, one]) => one.task === pick.task.value);
    refill(pick.example, own.map(([index]) => index), own.map(([, one]) => one.id));
    showExample();
  };

  refill(pick.task, unique(data.examples.map((one) => one.task)));
  pick.task.addEventListener("change", showTask);
  pick.example.addEventListener("change", showExample);
  pick.method.addEventListener("change", () => { showBudgets(); showView(); });
  pick.budget.addEventListener("change", showView);
  // the first compressed view says more than the full context
  const first = data.examples[0].views.find((view) => data.roles[view.method] === "kompakt");
  showTask();
  if (first) {
    pick.method.value = first.method;
    showBudgets();
    pick.budget.value = first.budget;
    showView();
  }
  $("drill").hidden = false;
})();
