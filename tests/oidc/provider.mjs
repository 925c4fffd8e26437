// An OpenID Connect provider for tests: node provider.mjs PORT. Its clients are named after the roles that they get.
//
// POST /rotate signs with a new key from then on, beside which the old one stays published; POST /withdraw publishes the
// newest one alone.
import { generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';
import { Provider } from 'oidc-provider';

const port = Number(process.argv[2]);
const issuer = `http://127.0.0.1:${port}`;
const roles = ['viewer', 'requester', 'approver', 'operator', 'privacy'];
const clients = [...roles, 'nobody', 'short-lived'].map((name) => ({
  client_id: name,
  client_secret: 'secret',
  grant_types: ['client_credentials'],
  redirect_uris: [],
  response_types: [],
}));
let keys = [];
let handle;

function addKey() {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const kid = `key-${keys.length ? Number(keys[0].kid.split('-')[1]) + 1 : 1}`;
  keys.unshift({ ...privateKey.export({ format: 'jwk' }), kid, use: 'sig', alg: 'RS256' });
}

function configure() {
  const provider = new Provider(issuer, {
    clients,
    jwks: { keys },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => 'https://foldtune.example',
        getResourceServerInfo: (_, resource, client) => ({
          audience: resource === 'https://foldtune.example' ? 'foldtune' : 'other',
          scope: '',
          accessTokenFormat: 'jwt',
          accessTokenTTL: client.clientId === 'short-lived' ? 1 : 600,
          jwt: { sign: { alg: 'RS256' } },
        }),
      },
    },
    extraTokenClaims: (_, token) => ({
      realm_access: { roles: token.clientId === 'short-lived' ? ['viewer'] : [token.clientId] },
    }),
  });
  handle = provider.callback();
}

addKey();
configure();
createServer((request, response) => {
  if (request.method === 'POST' && ['/rotate', '/withdraw'].includes(request.url)) {
    if (request.url === '/rotate') addKey();
    else keys = keys.slice(0, 1);
    configure();
    response.end();
    return;
  }
  handle(request, response);
}).listen(port, '127.0.0.1');
