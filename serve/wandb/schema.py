"""The GraphQL schema: the fields that wandb 0.31 and 0.22 ask for. An operation with any other field is refused.

Resolvers are methods of the objects behind the types (`queries`, `mutations`, `answers`).
"""

from __future__ import annotations

from graphql import GraphQLSchema, build_schema

SCHEMA: GraphQLSchema = build_schema("""
scalar JSON
scalar JSONString
scalar Duration
scalar Int64

type Query {
  viewer: User
  serverInfo: ServerInfo
  entity(name: String): Entity
  model(name: String, entityName: String): Project
  project(name: String, entityName: String): Project
  artifact(id: ID!): Artifact
  clientIDMapping(clientID: ID!): ClientIDMapping
}

type User {
  id: ID!
  name: String
  username: String
  entity: String
  email: String
  admin: Boolean
  flags: JSONString
  teams: TeamConnection
  apiKeys: ApiKeyConnection
}
type ApiKeyConnection { edges: [ApiKeyEdge!]! }
type ApiKeyEdge { node: ApiKey }
type ApiKey { id: ID! name: String description: String }
type TeamConnection { edges: [TeamEdge!]! }
type TeamEdge { node: Entity }

type ServerInfo {
  features: [ServerFeature]
  cliVersionInfo: JSON
  latestLocalVersionInfo: LatestLocalVersionInfo
}
type LatestLocalVersionInfo { outOfDate: Boolean latestVersionString: String versionOnThisInstanceString: String }
type ServerFeature { name: String isEnabled: Boolean }

type Entity {
  id: ID!
  name: String!
  organization: Organization
  xxhashDigestsEnabled: Boolean
}
type Organization { name: String coreWeaveOrganizationId: String orgEntity: Entity }

type Project {
  id: ID!
  internalId: ID!
  name: String!
  entity: Entity!
  run(name: String!): Run
  bucket(name: String!, missingOk: Boolean): Run
  artifact(name: String!): Artifact
  artifactType(name: String!): ArtifactType
  artifactCollection(name: String!): ArtifactCollection
  artifactCollectionMembership(name: String!): ArtifactCollectionMembership
}

type Run {
  id: ID!
  projectId: ID
  name: String!
  displayName: String
  description: String
  notes: String
  state: String
  config: JSONString
  tags: [String!]
  group: String
  jobType: String
  commit: String
  readOnly: Boolean
  createdAt: String
  heartbeatAt: String
  sweepName: String
  stopped: Boolean
  project: Project
  user: User
  summaryMetrics: JSONString
  systemMetrics: JSONString
  historyKeys: JSON
  historyLineCount: Int
  logLineCount: Int
  eventsLineCount: Int
  historyTail: JSONString
  eventsTail: JSONString
  wandbConfig(keys: [String!]): JSONString
}

type ArtifactType {
  name: String!
  artifactCollection(name: String!): ArtifactCollection
}
interface ArtifactCollection {
  id: ID!
  name: String!
  project: Project
  artifacts(after: String, first: Int, order: String, filters: JSONString): VersionedArtifactConnection
  artifactMembership(aliasName: String!): ArtifactCollectionMembership
}
type ArtifactSequence implements ArtifactCollection {
  id: ID!
  name: String!
  project: Project
  digestAlgorithm: String
  latestArtifact: Artifact
  artifacts(after: String, first: Int, order: String, filters: JSONString): VersionedArtifactConnection
  artifactMembership(aliasName: String!): ArtifactCollectionMembership
}
type ArtifactCollectionMembership {
  id: ID!
  versionIndex: Int
  createdAt: String!
  aliases: [ArtifactAlias!]!
  artifactCollection: ArtifactCollection
  artifact: Artifact
  files(names: [String!], after: String, first: Int): FileConnection
}
type VersionedArtifactConnection {
  totalCount: Int!
  pageInfo: PageInfo!
  edges: [VersionedArtifactEdge!]!
}
type VersionedArtifactEdge { version: String cursor: String! node: Artifact! }
type PageInfo { endCursor: String hasNextPage: Boolean! }

type Artifact {
  id: ID!
  artifactSequence: ArtifactSequence!
  artifactType: ArtifactType!
  versionIndex: Int
  description: String
  metadata: JSONString
  ttlDurationSeconds: Int64
  ttlIsInherited: Boolean
  tags: [Tag!]!
  historyStep: Int
  state: ArtifactState!
  size: Int64!
  digest: String!
  commitHash: String
  fileCount: Int64
  createdAt: String!
  updatedAt: String
  aliases: [ArtifactAlias!]!
  currentManifest: ArtifactManifest
  files(names: [String!], after: String, first: Int): FileConnection
  filesByManifestEntries(
    storageLayout: String!, manifestVersion: String!, entries: [ArtifactManifestEntryInput!], storageRegion: String
  ): FileConnection
}
enum ArtifactState { PENDING COMMITTED DELETED }
type Tag { id: ID! name: String! }
type ArtifactAlias { id: ID! alias: String! artifactCollection: ArtifactCollection }
type ArtifactManifest { id: ID! file: File! }
type FileConnection { totalCount: Int pageInfo: PageInfo! edges: [FileEdge!]! }
type FileEdge { node: File }
type File {
  id: ID!
  name: String!
  displayName: String
  digest: String
  md5: String
  sizeBytes: Int64!
  mimetype: String
  updatedAt: String
  storagePath: String
  artifact: Artifact
  url: String
  directUrl: String!
  uploadUrl: String
  uploadHeaders: [String!]!
  uploadMultipartUrls: UploadMultipartUrls
}
type UploadMultipartUrls { uploadID: String! uploadUrlParts: [UploadUrlPart!]! }
type UploadUrlPart { partNumber: Int64! uploadUrl: String! }
type ClientIDMapping { serverID: ID! }
input ArtifactManifestEntryInput { name: String! digest: String! birthArtifactID: String }

type Mutation {
  upsertBucket(input: UpsertBucketInput!): UpsertBucketPayload
  createRunFiles(input: CreateRunFilesInput!): CreateRunFilesPayload
  createArtifact(input: CreateArtifactInput!): CreateArtifactPayload
  createArtifactManifest(input: CreateArtifactManifestInput!): CreateArtifactManifestPayload
  createArtifactFiles(input: CreateArtifactFilesInput!): CreateArtifactFilesPayload
  commitArtifact(input: CommitArtifactInput!): ArtifactPayload
  updateArtifact(input: UpdateArtifactInput!): ArtifactPayload
}
type ArtifactPayload { artifact: Artifact! }

input UpsertBucketInput {
  id: String name: String groupName: String modelName: String entityName: String description: String
  displayName: String notes: String config: JSONString commit: String host: String debug: Boolean jobProgram: String
  jobRepo: String jobType: String state: String sweep: String tags: [String!] summaryMetrics: JSONString
}
type UpsertBucketPayload { bucket: Run inserted: Boolean }

input CreateRunFilesInput { entityName: String! projectName: String! runName: String! files: [String!]! }
type CreateRunFilesPayload { runID: ID! uploadHeaders: [String!]! files: [File!]! }

input CreateArtifactInput {
  entityName: String!
  projectName: String!
  runName: String
  artifactTypeName: String!
  artifactCollectionName: String
  artifactCollectionNames: [String!]
  digest: String!
  digestAlgorithm: ArtifactDigestAlgorithm
  description: String
  metadata: JSONString
  labels: JSONString
  aliases: [ArtifactAliasInput!]
  historyStep: Int64
  distributedID: String
  clientID: ID
  sequenceClientID: ID
  enableDigestDeduplication: Boolean
  ttlDurationSeconds: Int64
  storageRegion: String
  clientMutationId: String
}
enum ArtifactDigestAlgorithm { MANIFEST_MD5 MANIFEST_XXH128 }
input ArtifactAliasInput { alias: String! artifactCollectionName: String! }
type CreateArtifactPayload { artifact: Artifact! }

input CreateArtifactManifestInput {
  artifactID: ID!
  baseArtifactID: ID
  name: String!
  digest: String!
  entityName: String!
  projectName: String!
  runName: String!
  type: ArtifactManifestType!
}
enum ArtifactManifestType { FULL PATCH INCREMENTAL }
type CreateArtifactManifestPayload { artifactManifest: ArtifactManifest }

input CreateArtifactFilesInput {
  artifactFiles: [CreateArtifactFileSpecInput!]!
  storageLayout: ArtifactStorageLayout
  cloudRegionID: String
  clientMutationId: String
}
input CreateArtifactFileSpecInput {
  artifactID: ID!
  artifactManifestID: ID
  name: String!
  md5: String!
  mimetype: String
  uploadPartsInput: [UploadPartsInput!]
}
input UploadPartsInput { partNumber: Int64! hexMD5: String! }
enum ArtifactStorageLayout { V1 V2 }
type CreateArtifactFilesPayload { files: FileConnection }

input CommitArtifactInput { artifactID: ID! }
input UpdateArtifactInput {
  artifactID: ID!
  description: String
  metadata: JSONString
  ttlDurationSeconds: Int64
  tagsToAdd: [TagInput!]
  tagsToDelete: [TagInput!]
  aliases: [ArtifactAliasInput!]
}
input TagInput { tagName: String! tagCategoryName: String }
""")
