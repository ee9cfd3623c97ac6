// The proxy of the npm package @anthropic-ai/sandbox-runtime by itself: srt_proxy.mjs FOLDER PORT. Allows everything.
const [folder, port] = process.argv.slice(2);
const { createHttpProxyServer } = await import(`${folder}/node_modules/@anthropic-ai/sandbox-runtime/dist/sandbox/http-proxy.js`);
createHttpProxyServer({ filter: async () => true }).listen(Number(port), '127.0.0.1', () => console.log('ready'));
