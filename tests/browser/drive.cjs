// Drives the real ComfyUI frontend: opens each workflow, exports it, looks at templates and help; prints JSON.
// usage: node drive.cjs CONFIG.json   with {playwright, chromium, url, workflows: {name: graph}, shots, help}

const path = require("node:path");
const { config, withPage, ready, load, openHelp, run } = require("./browser.cjs");

async function main(page) {
  const errors = [];
  const served = [];
  page.on("response", (response) => response.ok() && served.push(new URL(response.url()).pathname));
  page.on("pageerror", (error) => errors.push(String(error)));
  await ready(page);
  const workflows = {};
  for (const [name, graph] of Object.entries(config.workflows)) workflows[name] = await open(page, name, graph);
  const help = await helpPages(page, config.help);
  const doctor = await askDoctor(page);
  const templates = await browseTemplates(page);
  const chinese = await inChinese(page, config.chinese);
  console.log(JSON.stringify({ workflows, help, doctor, templates, chinese, served, errors }));
}

async function open(page, name, graph) {
  await load(page, graph);
  const result = await page.evaluate(async () => {
    const app = window.app;
    const registered = window.LiteGraph.registered_node_types;
    const { output } = await app.graphToPrompt();
    return {
      prompt: output,
      nodes: app.graph.nodes.length,
      missing: app.graph.nodes.filter((node) => !(node.type in registered)).map((node) => node.type),
      red: app.graph.nodes.filter((node) => node.has_errors).map((node) => node.type),
      dialogs: [...document.querySelectorAll('[role="dialog"]')].map((dialog) => dialog.innerText.slice(0, 400)),
    };
  });
  await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Canvas.FitView"));
  await page.waitForTimeout(800);
  await page.screenshot({ path: path.join(config.shots, `${name}.png`) });
  return result;
}

// The text that the frontend shows as the help of each of the pack's nodes.
async function helpPages(page, names) {
  const shown = {};
  for (const node of names) {
    await openHelp(page, node);
    shown[node] = await page.evaluate(() => document.body.innerText);
    if (node === names[0]) await page.screenshot({ path: path.join(config.shots, `help of ${node}.png`) });
    await page.keyboard.press("Escape");
  }
  return shown;
}

// TurboDoctor run from the frontend: the node's size and the text on it.
async function askDoctor(page) {
  await page.evaluate(() => {
    const app = window.app;
    app.graph.clear();
    app.graph.add(window.LiteGraph.createNode("TurboDoctor"));
    app.queuePrompt(0);
  });
  const text = () => window.app.graph.nodes[0].widgets?.map((widget) => String(widget.value)).join("\n") ?? "";
  await page.waitForFunction(`(${text})().includes("TurboWan doctor:")`);
  await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Canvas.FitView"));
  await page.waitForTimeout(800);
  await page.screenshot({ path: path.join(config.shots, "doctor.png") });
  return { text: await page.evaluate(text), size: await page.evaluate(() => [...window.app.graph.nodes[0].size]) };
}

async function browseTemplates(page) {
  await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.BrowseTemplates"));
  await page.waitForTimeout(3000);
  const entry = page.getByText("comfyui-turbowan", { exact: false }).first();
  if (await entry.count()) await entry.click().catch(() => {});
  await page.waitForTimeout(2000);
  await page.screenshot({ path: path.join(config.shots, "templates.png") });
  return page.evaluate(() => document.body.innerText);
}

// A node's title, socket and help where the frontend speaks Chinese.
async function inChinese(page, node) {
  await page.evaluate(() => window.app.extensionManager.setting.set("Comfy.Locale", "zh"));
  await ready(page);
  const help = (await helpPages(page, [node]))[node];
  const shown = await page.evaluate(() => {
    const node = window.app.graph.nodes[0];
    return { title: node.title, inputs: node.inputs.map((input) => input.label ?? input.localized_name) };
  });
  return { ...shown, help };
}

run(() => withPage({ viewport: { width: 2200, height: 1200 } }, main));
