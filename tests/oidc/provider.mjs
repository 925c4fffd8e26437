// An OpenID Connect provider for tests: node provider.mjs PORT [REDIRECT_URI]. Its clients are named after the roles that
// they get, as are the people who sign in to the client `console`, whatever their password: `viewer+privacy` has two.
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
if (process.argv[3]) {
  clients.push({
    client_id: 'console',
    client_secret: 'secret',
    grant_types: ['authorization_code'],
    redirect_uris: [process.argv[3]],
    response_types: ['code'],
  });
}
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
    pkce: { required: () => true },
    cookies: { keys: ['of tests'] },
    claims: { openid: ['sub', 'realm_access'], profile: ['name'] },
    conformIdTokenClaims: false,
    findAccount: (_, accountId) => ({
      accountId,
      claims: () => ({ sub: accountId, realm_access: { roles: accountId.split('+') } }),
    }),
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: Boolean(process.argv[3]) },
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
